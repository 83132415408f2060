"""The decoder: its architecture, its weights, and the run of one batch.

The torch engine imports it; `app.engine.check` reads architectures, and benchmarks build odd models.
"""
