"""The rank's side: numbers events, sends them, and answers questions for those that were missed.

The rank's replica and the benchmarks import it.
"""
