"""Step 10: how far the installation's time was once set forward, and which events are older than that."""

import peewee


def apply(dialect: str, db: peewee.Database) -> None:  # noqa: ARG001 - the same on each
    """Add the columns. What was set forward before is not known."""
    for column in ("leapt", "leapt_revision"):
        db.execute_sql(f"ALTER TABLE clock ADD COLUMN {column} BIGINT NOT NULL DEFAULT 0")
