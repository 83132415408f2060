"""Which rank serves a request: what a router knows of the ranks, how it chooses, and what it remembers.

The router's deployment and the simulation import it; messages and clients of the deployments use its types.
"""
