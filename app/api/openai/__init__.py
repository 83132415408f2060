"""OpenAI's requests, answers and errors.

The ingress imports it.
"""
