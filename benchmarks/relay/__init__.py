"""The relay of foreign cache events: `python -m benchmarks.relay`."""
