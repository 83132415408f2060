"""The same work on ranks of every engine: `python -m benchmarks.engines`, and what the ways to them cost."""
