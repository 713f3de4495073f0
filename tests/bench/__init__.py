"""Benchmarks: side-by-side ratios, each in one run. See README.md."""
