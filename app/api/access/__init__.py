"""Who asks, and how much each may ask for: keys and their limits, without HTTP.

The ingress imports it.
"""
