"""How busy each rank is, how fast it computes, and how soon it has room.

`app.routing` imports it.
"""
