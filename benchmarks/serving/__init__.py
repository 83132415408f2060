"""The whole graph under conversations, by policy: `python -m benchmarks.serving`."""
