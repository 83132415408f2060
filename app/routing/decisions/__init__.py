"""One choice, from the prompt's hashes to the reserved rank, and what is remembered and said of it.

The router and the simulation import it.
"""
