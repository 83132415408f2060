"""What `benchmarks.engine` compares: one process per engine, which gets its work over its standard input."""
