"""Requests to simulate: read from a trace, or made up.

All of the simulation and the benchmarks import it.
"""
