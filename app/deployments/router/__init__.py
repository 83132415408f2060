"""The router's Ray replica, and what it sends to the other routers.

`app.build` imports it, and `benchmarks.routers`, which times it.
"""
