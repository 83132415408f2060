"""The KV-event plane: wire types, endpoints, publisher and subscriber."""
