"""The prefix cache and its block pool. No torch: the simulation runs on them too.

Engines and the simulation import it.
"""
