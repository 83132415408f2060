"""How many ranks there should be: what a rank says of its load to Ray's controller, and what that makes of it.

`app.build` and `rank` import it.
"""
