"""Benchmarks of Tumbler: ``make bench``. docs/performance.md explains the figures."""
