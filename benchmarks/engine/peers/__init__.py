"""What `benchmarks.engine` compares: one process per engine, each told what to do over its standard input."""
