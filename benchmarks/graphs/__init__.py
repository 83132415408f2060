"""What benchmarks of the whole graph share: starting it, its clients, watching its replicas."""
