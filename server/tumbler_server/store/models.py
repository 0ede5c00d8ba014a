"""The schema, as peewee models: the one definition that queries are written against.

Migrations create the tables; a test compares the two. Times are in microseconds (see ``clock``). The models are bound
to no database. ``Store`` binds each query as it runs it, so one process can use several databases.
"""

from typing import Any

from peewee import (
    BigIntegerField,
    BlobField,
    BooleanField,
    CharField,
    CompositeKey,
    Model,
    SmallIntegerField,
    TextField,
)

from tumbler_server.clock import NEVER


class ApiKeyRow(Model):
    """A key: its public fields, and the hashes that prove its secret."""

    id = CharField(primary_key=True)
    project_id = TextField()
    environment_id = TextField()
    name = TextField()
    key_prefix = TextField()
    search_text = TextField()  # name and key_prefix, case-folded here because databases fold differently
    owner_id = TextField()
    scopes = TextField()  # JSON list
    metadata = TextField()  # JSON object
    allowed_cidrs = TextField()  # JSON list
    active = BooleanField()
    create_time = BigIntegerField()
    created_by_key_id = TextField()
    created_by_name = TextField()
    update_time = BigIntegerField()
    expire_time = BigIntegerField(default=NEVER)
    last_used_time = BigIntegerField(default=0)  # 0: never used; sorts first
    revoke_time = BigIntegerField(default=NEVER)
    revoke_reason = SmallIntegerField(default=0)
    revoke_comment = TextField(default="")
    replaces_key_id = TextField(default="")
    replaced_by_key_id = TextField(default="")
    grace_expire_time = BigIntegerField(default=NEVER)
    rotation_interval = BigIntegerField(default=0)  # 0: no schedule
    rotation_next_time = BigIntegerField(default=NEVER)
    rotation_due_revision = BigIntegerField(default=0)  # of the pending ROTATION_DUE event; 0: none
    rotation_overdue = BooleanField(default=False)  # whether ROTATION_OVERDUE was recorded for this rotation
    webhook_url = TextField(default="")
    expiry_warnings = SmallIntegerField(default=0)  # how many were given, or were past when the expiry was set
    grace_ends_on_first_use = BooleanField(default=False)  # the successor's first use, still to come
    awaits_first_use = BooleanField(default=False)  # whether its own first use will end the key that it replaces
    revision = BigIntegerField()  # of the key's last event
    secret_hash = TextField()
    digest = BlobField(null=True)
    pepper_id = TextField(default="")
    alarm_time = BigIntegerField(default=0)  # when its next alarm is due, see keys.schedule; 0: not computed yet

    class Meta:
        table_name = "api_key"


class ProjectRow(Model):
    """The number of keys that a project has, in any state; see ``keys.projects``."""

    project_id = TextField(primary_key=True)
    keys = BigIntegerField()

    class Meta:
        table_name = "project"


STANDING = (
    f"CASE WHEN revoke_time <> {NEVER} THEN 4 WHEN replaced_by_key_id <> '' THEN 5 WHEN NOT active THEN 2 ELSE 1 END"
)
"""A key's state as far as its row determines it, in the proto's numbers. 1 stands for active and expired keys alike,
which only the clock tells apart. An index on this expression serves only queries that repeat it character by character.
"""


def standing(key: Any) -> int:
    """Return what ``STANDING`` gives, of a row or a record."""
    if key.revoke_time != NEVER:
        return 4
    if key.replaced_by_key_id:
        return 5
    return 1 if key.active else 2


def lives(key: Any, now: int) -> bool:
    """Return whether a key is active at ``now``."""
    return standing(key) == 1 and now < int(key.expire_time)


class ApiKeyScopeRow(Model):
    """A scope of a key. Triggers on ``api_key`` write it."""

    project_id = TextField()
    scope = TextField()
    create_time = BigIntegerField()  # the key's
    key_id = CharField()

    class Meta:
        table_name = "api_key_scope"
        primary_key = CompositeKey("project_id", "scope", "create_time", "key_id")


class EventRow(Model):
    """One change of one key; see ``events.log``."""

    revision = BigIntegerField(primary_key=True)
    type = SmallIntegerField()
    key_id = TextField()
    project_id = TextField()
    environment_id = TextField()
    time = BigIntegerField()
    actor_key_id = TextField()
    actor_name = TextField()
    detail = TextField()  # JSON object
    address = TextField(null=True)  # NULL, like the two columns below, in events from before schema 7
    request_id = TextField(null=True)
    record = BlobField(null=True)  # see keys.evidence
    hash = BlobField()

    class Meta:
        table_name = "event"


class LogHeadRow(Model):
    """The single row that assigns revisions and holds the newest hash. The anchor is that of the newest removed event.

    ``kept`` is the sum over the events that are kept from before the anchor; see ``events.kept``.
    """

    id = SmallIntegerField(primary_key=True)
    revision = BigIntegerField()
    hash = BlobField()
    anchor_revision = BigIntegerField()
    anchor_hash = BlobField()
    kept = BlobField()

    class Meta:
        table_name = "log_head"


class RequestRow(Model):
    """An idempotency key (request_id) that was used, and the result of its request."""

    project_id = TextField()
    request_id = TextField()
    fingerprint = BlobField()
    key_id = TextField()
    revision = BigIntegerField()
    rotated = BooleanField()
    create_time = BigIntegerField()

    class Meta:
        table_name = "request"
        primary_key = CompositeKey("project_id", "request_id")


class InstallationRow(Model):
    """The single row that identifies this installation: the secret that signs its page and consistency tokens."""

    id = SmallIntegerField(primary_key=True)
    token_secret = BlobField()

    class Meta:
        table_name = "installation"


class LeaseRow(Model):
    """The single row by which servers agree on the one that does timed work; see ``store.lease``."""

    id = SmallIntegerField(primary_key=True)
    holder = TextField()
    term = BigIntegerField()
    beat = BigIntegerField()

    class Meta:
        table_name = "lease"


class ClockRow(Model):
    """The single row that holds the newest time that the installation knows; see ``scheduler.timekeeping``."""

    id = SmallIntegerField(primary_key=True)
    time = BigIntegerField()  # 0: not set yet
    apart = BigIntegerField()  # how far the clock on trial was from it; 0: no clock is on trial
    waited = BigIntegerField()  # how long that clock has kept this distance
    leapt = BigIntegerField(default=0)  # how far the time was set forward while there are events from before
    leapt_revision = BigIntegerField(default=0)  # the newest event from before

    class Meta:
        table_name = "clock"


class ServerRow(Model):
    """A serving process, and the peppers that it knows; see ``secrets.roster``."""

    name = CharField(primary_key=True)
    pepper_ids = TextField()  # comma-separated, the one that signs first
    beat = BigIntegerField()
    seen_time = BigIntegerField()  # by its own clock, for display only

    class Meta:
        table_name = "server"


class OutboxRow(Model):
    """The single row with the revision of the last event for which deliveries were made."""

    id = SmallIntegerField(primary_key=True)
    revision = BigIntegerField()

    class Meta:
        table_name = "outbox"


class EndpointRow(Model):
    """A URL that receives a project's webhooks: its sealed secrets, and its recent failures."""

    id = CharField(primary_key=True)
    project_id = TextField()
    url = TextField()
    create_time = BigIntegerField()
    secret = BlobField()  # sealed; see secrets.vault
    pepper_id = TextField()
    previous_secret = BlobField(null=True)
    previous_pepper_id = TextField(default="")
    previous_expire_time = BigIntegerField(default=0)
    off_time = BigIntegerField(default=NEVER)  # when it answered 410 Gone
    failures = SmallIntegerField(default=0)  # in a row
    next_attempt_time = BigIntegerField(default=NEVER)  # never before that of its earliest delivery
    unused_time = BigIntegerField(default=NEVER)  # when upkeep found that no key has the URL and nothing is pending

    class Meta:
        table_name = "webhook_endpoint"


class DeliveryRow(Model):
    """The delivery of one event to one endpoint, pending or past."""

    revision = BigIntegerField(primary_key=True)  # the event's
    id = TextField(unique=True)
    endpoint_id = TextField()
    project_id = TextField()
    key_id = TextField()
    url = TextField()
    type = SmallIntegerField()  # the event's
    event_time = BigIntegerField()
    detail = TextField()  # the event's, copied because the event may be removed before the delivery
    state = SmallIntegerField()
    attempts = SmallIntegerField(default=0)  # in total
    tries = SmallIntegerField(default=0)  # since it was created, or last resent by hand
    give_up_time = BigIntegerField()
    next_attempt_time = BigIntegerField()
    last_attempt_time = BigIntegerField(default=0)  # 0: never
    last_status = SmallIntegerField(default=0)
    last_error = TextField(default="")

    class Meta:
        table_name = "webhook_delivery"


MODELS = (
    ApiKeyRow, ApiKeyScopeRow, EventRow, LogHeadRow, RequestRow, InstallationRow, LeaseRow, OutboxRow, EndpointRow,
    DeliveryRow, ProjectRow, ClockRow, ServerRow,
)  # fmt: skip
