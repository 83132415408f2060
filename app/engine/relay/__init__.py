"""A foreign engine's cache events in our hash chain: what it holds, as our own engine would say it.

The engines of other makes (`app.engine.vllm`, `app.engine.remote`) and the benchmarks import it.
"""
