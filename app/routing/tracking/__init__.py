"""Which ranks there are, what each one says, and whether the index is true.

The router imports it; what ranks say of themselves is also in the deployments' messages.
"""
