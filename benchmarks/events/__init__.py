"""What following the caches costs: `python -m benchmarks.events`."""
