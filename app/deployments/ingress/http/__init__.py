"""What holds for every request and answer, whatever its API."""
