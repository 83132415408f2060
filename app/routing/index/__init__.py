"""Which rank holds which block.

`app.routing` imports it, and whatever fills or audits the index.
"""
