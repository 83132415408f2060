"""From logits to tokens.

Only the torch engine imports it.
"""
