"""The database: how it is opened, what is in it, and how its schema grows."""
