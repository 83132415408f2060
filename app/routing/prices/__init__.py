"""What a choice costs others, learnt from the requests that a router sees: cache space, and busy ranks.

The chooser reads what is learnt of a prompt, policies read the prices of every rank. The routing core imports
it.
"""
