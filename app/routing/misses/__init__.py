"""Why a token wasn't cached where its request went: a reason for each, a memory to tell it from, counters.

The router's deployment and the simulation import it; messages and the ingress use its `Miss` and `Change`.
"""
