"""Requests and answers in the shapes of known APIs, and the HTTP headers that requests carry.

The ingress imports it; it knows nothing of Ray, routing or events.
"""
