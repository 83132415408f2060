"""Our own engine in torch: continuous batching over a paged KV cache with prefix reuse.

Only `app.engine` and tests of the engine's own mechanics import it.
"""
