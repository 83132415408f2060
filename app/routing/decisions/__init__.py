"""One choice, from the prompt's hashes to the reserved rank, and what is remembered and explained of it.

The routing core, the router and the simulation import it; ingress and clients use its `Outcome`.
"""
