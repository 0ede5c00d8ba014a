"""The database: how it is opened, what it stores, and how its schema is migrated."""
