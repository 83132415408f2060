"""The HTTP side: reads requests, asks a router, streams from the chosen rank, describes the deployment.

`app.build` and the integration tests import it.
"""
