"""Requests to simulate: read from a trace, or made up.

The simulator, its command and the benchmarks import it.
"""
