"""How many ranks there should be: what they say of their load to Ray's controller, and what it makes of that.

`app.build` and `rank` import it.
"""
