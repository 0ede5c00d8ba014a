"""What Tumbler costs, measured: ``make bench``. docs/performance.md says what the figures mean."""
