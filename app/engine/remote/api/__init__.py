"""How a worker is talked to: its HTTP, and the two APIs for generation. For `app.engine.remote` alone."""
