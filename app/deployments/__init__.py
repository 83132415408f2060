"""The Ray Serve deployments, a folder each, and what they share: clients, messages, background work, logs.

`app.build` imports it; benchmarks of whole graphs use its clients.
"""
