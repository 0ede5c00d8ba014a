"""Step 6: how many keys each project has, so that a limit on them costs no count."""

import peewee


def apply(dialect: str, db: peewee.Database) -> None:  # noqa: ARG001 - the same on each
    """Add the table, and count the keys that are there."""
    for statement in (
        "CREATE TABLE project (project_id TEXT PRIMARY KEY, keys BIGINT NOT NULL)",
        "INSERT INTO project (project_id, keys) SELECT project_id, COUNT(*) FROM api_key GROUP BY project_id",
    ):
        db.execute_sql(statement)
