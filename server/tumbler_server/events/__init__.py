"""The event log: audit trail, invalidation of caches, and the source of every stream."""
