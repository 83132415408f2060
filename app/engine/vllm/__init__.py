"""vLLM as a rank's engine: an `AsyncLLM` in the replica, whose engine core computes in processes of its own.

`async_llm`, `stat_logger` and `argument_names` import vLLM, and only `app.engine.loading` and `app.check` import
them. The others need nothing of it: config is checked, requests are translated where it isn't installed.
"""
