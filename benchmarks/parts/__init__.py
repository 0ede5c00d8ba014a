"""What is measured, one module a part. Each gives rows for docs/performance.md."""
