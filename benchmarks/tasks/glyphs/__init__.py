"""Benchmarks on the embedded world."""
