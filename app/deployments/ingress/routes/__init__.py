"""Which path is answered by what: a file for each API."""
