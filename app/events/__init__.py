"""The KV-event plane: what travels, at which ports, and the two ends of it.

`publishing` is the rank's end and `following` the router's; both import the modules here, which import
neither. Every layer above may import from here: engine, routing, simulation, deployments, `app.build`.
"""
