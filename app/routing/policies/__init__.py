"""Policies: which rank should compute a prompt. Pure functions of what a router knows.

The chooser and the explanations import it.
"""
