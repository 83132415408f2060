"""Where a model runs, and how much memory its KV cache gets there.

Only the torch engine imports it.
"""
