"""Kernels in plain torch operations, for every device.

`kernels.backends` and the other backends import it.
"""
