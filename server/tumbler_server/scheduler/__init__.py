"""The process that does timed work, in the one server that holds the lease."""
