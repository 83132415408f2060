"""A worker by URL as a rank: SGLang, vLLM or kvbeacon, found, followed and served from over HTTP and ZMQ.

Only `app.engine.loading.remote_engine` imports it, and of it only `engine`. Nothing here imports torch.
"""
