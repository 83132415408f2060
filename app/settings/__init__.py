"""The settings of a deployment by subject; `app.config` puts them together. Each part of the program receives
its own slice.
"""
