"""Whether load leaks when clients disconnect and ingresses die: `python -m benchmarks.load_leaks`."""
