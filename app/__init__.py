"""kvbeacon: prefix-aware serving of a large language model over data-parallel ranks on Ray Serve."""

__version__ = "0.1.0"
