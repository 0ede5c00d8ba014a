"""The event log. It is the audit trail, invalidates the caches and feeds every stream."""
