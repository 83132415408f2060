"""How busy each rank is, how fast it computes, and how soon it has room.

The rest of `app.routing`, and what feeds its load book, import it.
"""
