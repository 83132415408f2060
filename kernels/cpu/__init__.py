"""Kernels in C++ for CPUs with AVX-512 BF16, and their compiling once per machine.

`kernels.backends` imports it.
"""
