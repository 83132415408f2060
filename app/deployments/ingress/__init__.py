"""The HTTP side: validates, asks a router, streams from the chosen rank, describes the deployment.

`app.build` and the integration tests import it.
"""
