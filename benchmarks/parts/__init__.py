"""The parts of the benchmark, one module each. Each returns rows for docs/performance.md."""
