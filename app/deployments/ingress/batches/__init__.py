"""Requests of several prompts: each prompt is served by itself, and one answer tells of all of them."""
