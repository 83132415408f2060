"""Simulated ranks: the real prefix cache, modelled computing.

The simulator imports it.
"""
