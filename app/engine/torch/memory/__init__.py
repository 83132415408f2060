"""Where a model runs, and how much memory its weights and its KV cache get there.

The torch engine imports it, and so do benchmarks that build odd models.
"""
