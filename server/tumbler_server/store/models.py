"""The schema, as peewee models: the one definition that queries are written against.

Migrations make the tables; a test holds the two against each other. Times are microseconds (see ``clock``). The models
are bound to no database: ``Store.bind`` binds a query, so that one process can hold several.
"""

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
    """A key: what may be known of it, and the proofs of its secret."""

    id = CharField(primary_key=True)
    project_id = TextField()
    environment_id = TextField()
    name = TextField()
    key_prefix = TextField()
    search_text = TextField()  # name and key_prefix, case-folded: databases differ in how they fold
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
    last_used_time = BigIntegerField(default=0)  # 0: never; it sorts first
    revoke_time = BigIntegerField(default=NEVER)
    revoke_reason = SmallIntegerField(default=0)
    revoke_comment = TextField(default="")
    replaces_key_id = TextField(default="")
    replaced_by_key_id = TextField(default="")
    grace_expire_time = BigIntegerField(default=NEVER)
    rotation_interval = BigIntegerField(default=0)  # 0: no schedule
    rotation_next_time = BigIntegerField(default=NEVER)
    rotation_due_revision = BigIntegerField(default=0)  # of the ROTATION_DUE that stands; 0: none does
    rotation_overdue = BooleanField(default=False)  # whether that was said of this rotation
    webhook_url = TextField(default="")
    expiry_warnings = SmallIntegerField(default=0)  # how many were given, or had passed when the expiry was set
    grace_ends_on_first_use = BooleanField(default=False)  # of its successor, and that has not come yet
    awaits_first_use = BooleanField(default=False)  # whether its own first use is still to end what it replaces
    revision = BigIntegerField()  # of the key's last event
    secret_hash = TextField()
    digest = BlobField(null=True)
    pepper_id = TextField(default="")
    alarm_time = BigIntegerField(default=0)  # when something is due of it, see keys.schedule; 0: not looked at yet

    class Meta:
        table_name = "api_key"


class ProjectRow(Model):
    """How many keys a project has, of whatever state; see ``keys.projects``."""

    project_id = TextField(primary_key=True)
    keys = BigIntegerField()

    class Meta:
        table_name = "project"


STANDING = (
    f"CASE WHEN revoke_time <> {NEVER} THEN 4 WHEN replaced_by_key_id <> '' THEN 5 WHEN NOT active THEN 2 ELSE 1 END"
)
"""A key's state as far as its row says it: by the proto's numbers, and 1 for active keys and expired ones alike, which
the clock tells apart. An index is made of it, and serves only queries that say it letter by letter."""


class ApiKeyScopeRow(Model):
    """A scope that a key carries; triggers on ``api_key`` write it."""

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
    address = TextField(null=True)  # NULL, as the two after it: made before schema 7
    request_id = TextField(null=True)
    record = BlobField(null=True)  # see keys.evidence
    hash = BlobField()

    class Meta:
        table_name = "event"


class LogHeadRow(Model):
    """The single row that hands out revisions, and holds the newest hash; the anchor is the newest removed event's.

    ``kept`` is the sum over the events that are kept from before the anchor, see ``events.kept``.
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
    """A request_id that was used, and what came of it."""

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
    """The single row that makes this installation itself: what signs its page and consistency tokens."""

    id = SmallIntegerField(primary_key=True)
    token_secret = BlobField()

    class Meta:
        table_name = "installation"


class LeaseRow(Model):
    """The single row by which servers agree who acts on the clock; see ``events.lease``."""

    id = SmallIntegerField(primary_key=True)
    holder = TextField()
    term = BigIntegerField()
    beat = BigIntegerField()

    class Meta:
        table_name = "lease"


class ClockRow(Model):
    """The single row that says what time the installation has come to; see ``events.timekeeping``."""

    id = SmallIntegerField(primary_key=True)
    time = BigIntegerField()  # 0: nobody has said yet
    apart = BigIntegerField()  # how far the clock that is on trial was from it; 0: none is
    waited = BigIntegerField()  # how long that has said the same

    class Meta:
        table_name = "clock"


class ServerRow(Model):
    """A process that serves, and the peppers that it knows; see ``keys.roster``."""

    name = CharField(primary_key=True)
    pepper_ids = TextField()  # joined by commas, the one that signs first
    beat = BigIntegerField()
    seen_time = BigIntegerField()  # by its own clock, for people to read

    class Meta:
        table_name = "server"


class OutboxRow(Model):
    """The single row that says up to which event deliveries have been made of the log."""

    id = SmallIntegerField(primary_key=True)
    revision = BigIntegerField()

    class Meta:
        table_name = "outbox"


class EndpointRow(Model):
    """A URL that a project's webhooks go to: its sealed secrets, and how it has been answering."""

    id = CharField(primary_key=True)
    project_id = TextField()
    url = TextField()
    create_time = BigIntegerField()
    secret = BlobField()  # sealed; see webhooks.vault
    pepper_id = TextField()
    previous_secret = BlobField(null=True)
    previous_pepper_id = TextField(default="")
    previous_expire_time = BigIntegerField(default=0)
    off_time = BigIntegerField(default=NEVER)  # when it said that it is gone
    failures = SmallIntegerField(default=0)  # in a row
    next_attempt_time = BigIntegerField(default=NEVER)  # not before its earliest delivery's
    unused_time = BigIntegerField(default=NEVER)  # since when no key has the URL and nothing waits, as upkeep has seen

    class Meta:
        table_name = "webhook_endpoint"


class DeliveryRow(Model):
    """What is to be told, or was, of one event, to one endpoint."""

    revision = BigIntegerField(primary_key=True)  # the event's
    id = TextField(unique=True)
    endpoint_id = TextField()
    project_id = TextField()
    key_id = TextField()
    url = TextField()
    type = SmallIntegerField()  # the event's
    event_time = BigIntegerField()
    detail = TextField()  # the event's, since that may be removed before it is delivered
    state = SmallIntegerField()
    attempts = SmallIntegerField(default=0)  # ever
    tries = SmallIntegerField(default=0)  # since it was made, or sent again by hand
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
