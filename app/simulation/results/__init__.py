"""What a simulation gives: figures, bounds, a picture.

The simulator, its command and the benchmarks import it.
"""
