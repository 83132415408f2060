"""One DP rank's Ray replica: its engine and its event publisher.

`app.build` imports it.
"""
