"""Benchmarks of the jobs, each against a peer in the same run."""
