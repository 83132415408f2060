"""The real routing and block pool on a virtual clock: what a policy makes of a trace, without a GPU."""
