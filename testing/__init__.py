"""Helpers that tests and benchmarks share: fakes, small networks, reference implementations, local clusters and S3
servers. Imported from the root of the repository; not installed."""
