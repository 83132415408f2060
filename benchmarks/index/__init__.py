"""The prefix index and a whole choice: `python -m benchmarks.index`."""
