"""Our own engine in torch: continuous batching over a paged KV cache with prefix reuse.

`app.engine` imports it, and so do tests and benchmarks of the engine's own mechanics. No deployment does.
"""
