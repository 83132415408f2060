"""Requests and answers in other people's shapes, and the HTTP headers that requests carry.

The ingress imports it; it knows nothing of Ray, routing or events.
"""
