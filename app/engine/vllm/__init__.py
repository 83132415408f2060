"""vLLM as a rank's engine: an `AsyncLLM` in the replica, whose engine core computes in processes of its own.

`async_llm` and `argument_names` import vLLM; only `loading` and `check` import these. The others
need nothing of it: config is checked, and requests are translated, where it isn't installed.
"""
