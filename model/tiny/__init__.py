"""Small models that are made here from a seed, for tests, the demo and benchmarks."""
