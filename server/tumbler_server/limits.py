"""The limits on what a caller can make this service store, do or wait for. docs/limits.md shows them as a table.

A test compares the page with this module and ``shares``. A limit that is in neither is a mistake.
"""

from collections.abc import Mapping
from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Limit:
    """A row of the table. ``beyond`` says what happens past ``most``, or what the caller gets.

    ``setting`` names the flag that changes the limit, or is empty.
    """

    what: str
    most: int
    unit: str
    beyond: str
    setting: str = ""


VERIFY_BYTES = Limit("a Verify request", 16 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
BATCH_BYTES = Limit("a BatchVerify request", 512 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
REQUEST_BYTES = Limit("any other request", 128 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
MESSAGE_BYTES = Limit(
    "a message of any kind",
    BATCH_BYTES.most + 64 * KIB,
    "bytes",
    "RESOURCE_EXHAUSTED from gRPC itself, without details",
)
RECORD_BYTES = Limit("a key's record, serialized", 16 * KIB, "bytes", "INVALID_ARGUMENT, INVALID_FIELD")
ANSWER_BYTES = Limit(
    "an answer", 3 * MIB, "bytes", "a list ends the page early; a batch leaves the remaining items undecided"
)  # gRPC's clients accept 4 MiB by default
PAGE_ENTRIES = Limit("a page of a list", 1_000, "entries", "a larger page_size is reduced to 1,000")
PROJECT_KEYS = Limit(
    "keys of a project", 1_000_000, "keys", "RESOURCE_EXHAUSTED, LIMIT_REACHED", "--max-project-keys"
)  # in any state: rows are never deleted
CACHE_KEYS = Limit("cached keys", 100_000, "keys", "the oldest key not in use is evicted", "--cache-size")
CACHE_BYTES = Limit(
    "memory of cached keys", 128 * MIB, "bytes", "the oldest key not in use is evicted", "--cache-bytes"
)
CACHED_DEMANDS = Limit("cached demands of Verify", 1_024, "demands", "the oldest is evicted (8 MiB in all)")
DEMAND_TEXT = Limit("all texts of a cached demand", 512, "characters", "it is not cached, but checked each time")
ALIKE_VALUES = Limit(
    "values of one kind shared between records", 4_096, "values", "the oldest is no longer shared (80 MiB in all)"
)
ALIKE_TEXT = Limit(
    "a value shared between records", 512, "characters", "each record has its own copy, which the cache counts"
)
RING_EVENTS = Limit("newest events in memory", 10_000, "events", "streams further behind read the database")
NEWEST_HASHES = Limit(
    "hashes of the newest events in memory", 20_000, "hashes", "a token that names an older event has it read"
)
OLDER_HASHES = Limit("hashes of older events that tokens name", 1_000, "hashes", "the oldest is evicted")
RING_BYTES = Limit("memory of the newest events", 16 * MIB, "bytes", "streams further behind read the database")
NOTICE_EVENTS = Limit("a response of Watch", 100, "events", "the rest is in the next response")
NOTICE_BYTES = Limit("a response of Watch, serialized", 32 * KIB, "bytes", "the rest is in the next response")
SHARED_NOTICES = Limit(
    "responses of Watch shared between streams", 32, "responses", "the oldest is evicted (5 MiB in all)"
)
USE_NOTES = Limit("keys whose last use waits to be written", 200_000, "keys", "the use of further keys is not recorded")
FIRST_USES = Limit(
    "keys whose first use waits to be written", 10_000, "keys", "further keys are recorded at their next use"
)
LIST_SKIP = Limit("List's skip", 10_000, "keys", "INVALID_ARGUMENT, INVALID_FIELD")
LIST_SCAN = Limit("keys that a page of List examines", 3_000, "keys", "the page ends early, with a next_page_token")
LIST_COUNT = Limit("keys that total_size counts", 10_000, "keys", "total_size is a lower bound")

WEBHOOK_URLS = Limit("webhook URLs", 1_000, "a project", "RESOURCE_EXHAUSTED, LIMIT_REACHED", "--max-webhook-urls")
WEBHOOK_SECRETS = Limit(
    "replaced webhook secrets that still sign", 3, "a webhook URL", "RESOURCE_EXHAUSTED, LIMIT_REACHED, for a day"
)
WEBHOOKS_PENDING = Limit("webhooks that wait to be sent", 200_000, "a project", "the oldest fail: FAILED")
WEBHOOKS_SENT = Limit("webhooks in flight", 16, "a project, of 64 in all", "further ones wait")
WEBHOOK_LOOK_UPS = Limit(
    "Creates and Updates that look up a webhook's host", 2, "a project", "RESOURCE_EXHAUSTED, OVERLOADED"
)
WATCH_KEY = Limit("Watch streams of a key", 2_000, "streams a process", "RESOURCE_EXHAUSTED, OVERLOADED")
WATCH_PROJECT = Limit("Watch streams of a project's keys", 2_500, "streams a process", "RESOURCE_EXHAUSTED, OVERLOADED")
WATCH_BEATS = Limit(
    "heartbeats that a project's streams request", 500, "a second and process", "RESOURCE_EXHAUSTED, OVERLOADED"
)
WATCH_PROCESS = Limit(
    "Watch streams",
    5_000,
    "streams a process",
    "the newest stream of the project with the most ends, or the new one is refused: RESOURCE_EXHAUSTED, OVERLOADED",
    "--max-watch-streams",
)

LIMITS: tuple[Limit, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Limit))
"""The table, in the order of the page."""

ENTRIES: Mapping[str, int] = {
    "allowed_cidrs": 100,
    "metadata": 50,
    "paths": 32,  # of an update_mask
    "requests": 1_000,  # of a BatchVerify
    "required_scopes": 100,
    "scopes": 100,
    "states": 16,
    "types": 32,
}
"""The most entries of each repeated field and map of the requests, by field name: one name has one limit.

The server counts entries before it reads any (``rpc.counting``).
"""

LENGTHS: Mapping[str, int] = {
    "at_least_as_fresh": 4_096,
    "claim_token": 512,
    "client_ip": 64,
    "comment": 1_024,
    "delivery_id": 128,
    "environment_id": 128,
    "key": 256,
    "key_id": 128,
    "name": 255,
    "order_by": 64,
    "owner_id": 255,
    "page_token": 4_096,
    "prefix": 128,
    "project_id": 128,
    "request_id": 128,
    "scope": 128,
    "search": 255,
    "start_cursor": 4_096,
    "webhook_url": 2_048,
}
"""The most characters of each text of the requests, by field name. A field's own rule may be stricter."""

ENTRY_LENGTHS: Mapping[str, int] = {
    "allowed_cidrs": 64,
    "metadata": 1_024,  # a value; a key: 64
    "required_scopes": 128,
    "scopes": 128,
}
"""The most characters of an entry of a repeated field."""

METADATA_KEY_LENGTH = 64
