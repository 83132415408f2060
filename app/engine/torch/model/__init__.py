"""The decoder: its architecture, its weights, and the run of one batch.

Only the torch engine imports it.
"""
