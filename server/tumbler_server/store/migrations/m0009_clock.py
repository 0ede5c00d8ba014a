"""Step 9: the time that the installation goes by, the peppers that its servers know, and an index to compare both."""

import peewee


def apply(dialect: str, db: peewee.Database) -> None:  # noqa: ARG001 - the same on each
    """Add the tables; what is in them is found out by the servers that run."""
    for statement in (
        """
        CREATE TABLE clock (
          id SMALLINT PRIMARY KEY, time BIGINT NOT NULL, apart BIGINT NOT NULL, waited BIGINT NOT NULL
        )
        """,
        "INSERT INTO clock (id, time, apart, waited) VALUES (1, 0, 0, 0)",
        """
        CREATE TABLE server (
          name VARCHAR(255) PRIMARY KEY, pepper_ids TEXT NOT NULL, beat BIGINT NOT NULL, seen_time BIGINT NOT NULL
        )
        """,
        "CREATE INDEX api_key_by_pepper_id ON api_key (pepper_id)",
    ):
        db.execute_sql(statement)
