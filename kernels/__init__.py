"""The ops that a transformer step is made of, behind one explicit choice of backend.

`backends.load_kernels(name, device)` gives a `Kernels`: every op of `kernels.interface` in that backend, and
logs the choice. A backend that is asked for and can't run raises; only `auto` chooses, by the order in
`kernels.backends`.

- `interface.py` says what each op computes, with its formula, shapes and layouts.
- `reference.py` is the plain version that the others are tested against.
- `torch/` runs wherever torch does, `cpu/` is C++ that its `library.py` compiles and loads, `triton/` is for
  GPUs. In each a file holds the ops of one subject, and `backend.py` has all of them as `KERNELS`.
- `unfused_gated_linear.py` makes a gated linear layer out of two ops, for backends that have no fused one.

To add a backend: write the ops that it does better, fill in the rest from another one with
`dataclasses.replace(torch.backend.KERNELS, name=..., ...)`, add a `Backend` to `kernels.backends` that says
where it can't run and, if `auto` is to choose it, its place in `AUTO`; then add its name to `BACKENDS` in
`tests/kernels/conftest.py`, which runs every test of every op on it. `KernelBackend` in
`app/settings/engine.py` lets users choose it.
"""
