"""Step 8: rotated keys that end when their successor is first used."""

import peewee

from tumbler_server.store.database import SQLITE


def apply(dialect: str, db: peewee.Database) -> None:
    """Add the columns. Keys that were rotated before end with their grace period, as they were told."""
    false = "0" if dialect == SQLITE else "FALSE"
    for column in ("grace_ends_on_first_use", "awaits_first_use"):
        db.execute_sql(f"ALTER TABLE api_key ADD COLUMN {column} BOOLEAN NOT NULL DEFAULT {false}")
