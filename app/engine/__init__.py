"""Engines of a rank: token ids in, token ids and cache events out. They know no Ray, ZMQ or HTTP.

The rank imports `interface` and `load`, benchmarks `load`; the simulation `cache`; `app.check` `check`.
"""
