"""Generators, the embedded server, the demonstration and the benchmark."""
