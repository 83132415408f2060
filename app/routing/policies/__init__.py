"""Policies: which rank should compute a prompt. Pure functions of what a router knows.

A new policy is a file here and a line in `registry`; what all share is in `base`. The routing core, the
explanations, and what reads a policy's name from a user import it.
"""
