"""The router's side: follows one rank's events and load, and recovers what was lost.

`app.routing` imports it: `tracking` its subscriber, all of it the type `Trust`. So do the benchmarks.
"""
