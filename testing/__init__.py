"""Helpers shared by tests and benchmarks: fakes, small networks, reference implementations, local clusters, S3 servers.

The package is imported from the root of the repository and is not installed.
"""
