"""Step 1: keys, the event log and its head, used request_ids, and the installation's own row."""

import secrets

import peewee

from tumbler_server.store.database import POSTGRESQL, SQLITE


def apply(dialect: str, db: peewee.Database) -> None:
    """Make the tables and their two single rows."""
    blob = "BLOB" if dialect == SQLITE else "BYTEA"
    # Names and ids sort by code point on every database, so that pages agree; SQLite and CockroachDB do so anyway.
    by_code_point = ' COLLATE "C"' if dialect == POSTGRESQL else ""
    for statement in (
        f"""
        CREATE TABLE api_key (
          id VARCHAR(255){by_code_point} PRIMARY KEY,
          project_id TEXT NOT NULL,
          environment_id TEXT NOT NULL,
          name TEXT{by_code_point} NOT NULL,
          key_prefix TEXT NOT NULL,
          search_text TEXT NOT NULL,
          owner_id TEXT NOT NULL,
          scopes TEXT NOT NULL,
          metadata TEXT NOT NULL,
          allowed_cidrs TEXT NOT NULL,
          active BOOLEAN NOT NULL,
          create_time BIGINT NOT NULL,
          created_by_key_id TEXT NOT NULL,
          created_by_name TEXT NOT NULL,
          update_time BIGINT NOT NULL,
          expire_time BIGINT NOT NULL,
          last_used_time BIGINT NOT NULL,
          revoke_time BIGINT NOT NULL,
          revoke_reason SMALLINT NOT NULL,
          revoke_comment TEXT NOT NULL,
          replaces_key_id TEXT NOT NULL,
          replaced_by_key_id TEXT NOT NULL,
          grace_expire_time BIGINT NOT NULL,
          rotation_interval BIGINT NOT NULL,
          rotation_next_time BIGINT NOT NULL,
          revision BIGINT NOT NULL,
          secret_hash TEXT NOT NULL,
          digest {blob},
          pepper_id TEXT NOT NULL
        )
        """,
        "CREATE INDEX api_key_by_create_time ON api_key (create_time, id)",
        "CREATE INDEX api_key_by_project_create_time ON api_key (project_id, create_time, id)",
        "CREATE INDEX api_key_by_project_name ON api_key (project_id, name, id)",
        "CREATE INDEX api_key_by_project_expire_time ON api_key (project_id, expire_time, id)",
        "CREATE INDEX api_key_by_project_last_used_time ON api_key (project_id, last_used_time, id)",
        f"""
        CREATE TABLE event (
          revision BIGINT PRIMARY KEY,
          type SMALLINT NOT NULL,
          key_id TEXT NOT NULL,
          project_id TEXT NOT NULL,
          environment_id TEXT NOT NULL,
          time BIGINT NOT NULL,
          actor_key_id TEXT NOT NULL,
          actor_name TEXT NOT NULL,
          detail TEXT NOT NULL,
          hash {blob} NOT NULL
        )
        """,
        "CREATE INDEX event_by_key ON event (key_id, revision)",
        "CREATE INDEX event_by_project ON event (project_id, revision)",
        f"CREATE TABLE log_head (id SMALLINT PRIMARY KEY, revision BIGINT NOT NULL, hash {blob} NOT NULL)",
        f"""
        CREATE TABLE request (
          project_id TEXT NOT NULL,
          request_id TEXT NOT NULL,
          fingerprint {blob} NOT NULL,
          key_id TEXT NOT NULL,
          revision BIGINT NOT NULL,
          rotated BOOLEAN NOT NULL,
          create_time BIGINT NOT NULL,
          PRIMARY KEY (project_id, request_id)
        )
        """,
        f"CREATE TABLE installation (id SMALLINT PRIMARY KEY, token_secret {blob} NOT NULL)",
    ):
        db.execute_sql(statement)
    slot = db.param
    db.execute_sql(f"INSERT INTO log_head (id, revision, hash) VALUES (1, 0, {slot})", (bytes(32),))  # noqa: S608
    db.execute_sql(
        f"INSERT INTO installation (id, token_secret) VALUES (1, {slot})",  # noqa: S608
        (secrets.token_bytes(32),),
    )
