"""The event log: what has happened to keys. It is the audit trail, and the source of streams and webhooks."""
