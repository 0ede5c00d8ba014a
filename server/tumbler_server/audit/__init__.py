"""The audit: whether the log and the keys' rows are as they were written."""
