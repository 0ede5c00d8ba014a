"""Step 5: indexes by which webhooks are shared out by project, and since when a webhook's URL has been unused."""

import peewee

from tumbler_server.clock import NEVER


def apply(dialect: str, db: peewee.Database) -> None:  # noqa: ARG001 - the same everywhere
    """Add the column and the indexes. The index of what is due of all projects together has no use any more."""
    for statement in (
        f"ALTER TABLE webhook_endpoint ADD COLUMN unused_time BIGINT NOT NULL DEFAULT {NEVER}",
        "DROP INDEX webhook_endpoint_by_next_attempt_time",
        "CREATE INDEX webhook_endpoint_fresh ON webhook_endpoint (project_id, next_attempt_time) "
        f"WHERE failures = 0 AND next_attempt_time < {NEVER}",
        "CREATE INDEX webhook_endpoint_failing ON webhook_endpoint (project_id, next_attempt_time) "
        f"WHERE failures > 0 AND next_attempt_time < {NEVER}",
        "CREATE INDEX webhook_delivery_pending ON webhook_delivery (project_id, revision) "
        f"WHERE next_attempt_time < {NEVER}",
        "CREATE INDEX api_key_by_webhook_url ON api_key (project_id, webhook_url, grace_expire_time) "
        f"WHERE webhook_url <> '' AND revoke_time = {NEVER}",
    ):
        db.execute_sql(statement)
