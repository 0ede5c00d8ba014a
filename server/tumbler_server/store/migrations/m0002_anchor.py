"""Step 2: the log's anchor, the place from which it is kept (all of it, so far), and indexes over all projects."""

import peewee

from tumbler_server.store.database import SQLITE


def apply(dialect: str, db: peewee.Database) -> None:
    """Add revision and hash of the newest event that was removed, the chain's beginning while none was."""
    zeros = bytes(32).hex()
    genesis = f"BLOB NOT NULL DEFAULT x'{zeros}'" if dialect == SQLITE else f"BYTEA NOT NULL DEFAULT '\\x{zeros}'"
    # By their defaults and no UPDATE: CockroachDB lets no statement of the same transaction write to a new column.
    db.execute_sql("ALTER TABLE log_head ADD COLUMN anchor_revision BIGINT NOT NULL DEFAULT 0")
    db.execute_sql(f"ALTER TABLE log_head ADD COLUMN anchor_hash {genesis}")
    # Operators list the keys of all projects; without these each page of a million would be sorted anew.
    db.execute_sql("CREATE INDEX api_key_by_name ON api_key (name, id)")
    db.execute_sql("CREATE INDEX api_key_by_expire_time ON api_key (expire_time, id)")
    db.execute_sql("CREATE INDEX api_key_by_last_used_time ON api_key (last_used_time, id)")
