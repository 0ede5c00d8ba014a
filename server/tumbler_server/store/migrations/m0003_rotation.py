"""Step 3: schedules and their alarms, the lease of who acts on them, and webhooks: endpoints, outbox, deliveries."""

import peewee

from tumbler_server.clock import NEVER
from tumbler_server.store.database import SQLITE


def apply(dialect: str, db: peewee.Database) -> None:
    """Add the columns and tables. No webhook tells of what happened before."""
    blob = "BLOB" if dialect == SQLITE else "BYTEA"
    false = "0" if dialect == SQLITE else "FALSE"
    for statement in (
        "ALTER TABLE api_key ADD COLUMN rotation_due_revision BIGINT NOT NULL DEFAULT 0",
        f"ALTER TABLE api_key ADD COLUMN rotation_overdue BOOLEAN NOT NULL DEFAULT {false}",
        "ALTER TABLE api_key ADD COLUMN webhook_url TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE api_key ADD COLUMN expiry_warnings SMALLINT NOT NULL DEFAULT 0",
        # Keys that were there before have 0: their alarms are long past, so that each is looked at once, and set right.
        "ALTER TABLE api_key ADD COLUMN alarm_time BIGINT NOT NULL DEFAULT 0",
        f"CREATE INDEX api_key_by_alarm_time ON api_key (alarm_time) WHERE alarm_time < {NEVER}",
        """
        CREATE TABLE lease (
          id SMALLINT PRIMARY KEY, holder TEXT NOT NULL, term BIGINT NOT NULL, beat BIGINT NOT NULL
        )
        """,
        "INSERT INTO lease (id, holder, term, beat) VALUES (1, '', 0, 0)",
        "CREATE TABLE outbox (id SMALLINT PRIMARY KEY, revision BIGINT NOT NULL)",
        "INSERT INTO outbox (id, revision) SELECT 1, revision FROM log_head WHERE id = 1",
        f"""
        CREATE TABLE webhook_endpoint (
          id VARCHAR(255) PRIMARY KEY,
          project_id TEXT NOT NULL,
          url TEXT NOT NULL,
          create_time BIGINT NOT NULL,
          secret {blob} NOT NULL,
          pepper_id TEXT NOT NULL,
          previous_secret {blob},
          previous_pepper_id TEXT NOT NULL,
          previous_expire_time BIGINT NOT NULL,
          off_time BIGINT NOT NULL,
          failures SMALLINT NOT NULL,
          next_attempt_time BIGINT NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX webhook_endpoint_by_url ON webhook_endpoint (project_id, url)",
        "CREATE INDEX webhook_endpoint_by_next_attempt_time ON webhook_endpoint (next_attempt_time)",
        """
        CREATE TABLE webhook_delivery (
          revision BIGINT PRIMARY KEY,
          id TEXT NOT NULL,
          endpoint_id TEXT NOT NULL,
          project_id TEXT NOT NULL,
          key_id TEXT NOT NULL,
          url TEXT NOT NULL,
          type SMALLINT NOT NULL,
          event_time BIGINT NOT NULL,
          detail TEXT NOT NULL,
          state SMALLINT NOT NULL,
          attempts SMALLINT NOT NULL,
          tries SMALLINT NOT NULL,
          give_up_time BIGINT NOT NULL,
          next_attempt_time BIGINT NOT NULL,
          last_attempt_time BIGINT NOT NULL,
          last_status SMALLINT NOT NULL,
          last_error TEXT NOT NULL
        )
        """,
        "CREATE UNIQUE INDEX webhook_delivery_by_id ON webhook_delivery (id)",
        "CREATE INDEX webhook_delivery_by_endpoint ON webhook_delivery (endpoint_id, next_attempt_time, revision)",
        "CREATE INDEX webhook_delivery_by_project ON webhook_delivery (project_id, revision)",
        "CREATE INDEX webhook_delivery_by_key ON webhook_delivery (key_id, revision)",
    ):
        db.execute_sql(statement)
