"""What benchmarks of the whole graph share: starting it, and finding the processes of its replicas."""
