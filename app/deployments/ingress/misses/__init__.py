"""What an ingress tells routers of prompts, and clients of what was missed: header, usage, `/router/misses`.

The ingress imports it.
"""
