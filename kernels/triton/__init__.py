"""Kernels in Triton, for GPUs.

`kernels.backends` imports it.
"""
