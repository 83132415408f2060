"""Who may come in: keys, limits and deadlines of every request, before any route."""
