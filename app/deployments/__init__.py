"""The Ray Serve deployments: rank, router, ingress."""
