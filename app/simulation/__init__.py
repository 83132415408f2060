"""The real routing and prefix cache on a virtual clock: what a policy makes of a trace, without a GPU.

`python -m app.simulation` and the benchmarks import it; nothing of the deployment does.
"""
