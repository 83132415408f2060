"""The router's side: follows one rank's events and load, and recovers what was lost.

`app.routing.tracking` imports it.
"""
