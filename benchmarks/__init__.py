"""Measurements of the running product: each module prints one JSON object as its last line."""
