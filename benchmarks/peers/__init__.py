"""Routing policies of other projects, to stand beside kvbeacon's in `benchmarks.routing`.

Each is written from its project's published formula, with the defaults published there. They know at once and
exactly what their ranks hold and have to do, which is more than they would know in life.
"""
