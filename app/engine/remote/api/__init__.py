"""How a worker is talked to: its HTTP, and the two APIs for generation. Imported by `app.engine.remote` alone."""
