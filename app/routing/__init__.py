"""Which rank serves a request: prefix index, load, policy, and the tracker that feeds them."""
