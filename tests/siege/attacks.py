"""All attacks, in the order of the table, and what "held" means for each."""

from collections.abc import Sequence

from tests.siege import accidents, outsiders, tenants
from tests.siege.scene import FLOODING, OUTSIDER, PAYING, Attack, Held

ANYTHING_THAT_WRITES = frozenset({"Revoke", "denied", "change"})
EVERYTHING = ANYTHING_THAT_WRITES | {"Verify", "unseen", "Get", "Check", "List", "new Watch", "health", "heartbeat"}

SMALL_CACHE = ("--cache-bytes", "4MiB")
"""The cache size for attacks that fill the cache: a large one would hide other growth of memory."""


def _attack(run: object, held: Held, short: bool = False, **more: object) -> Attack:
    name = run.__name__.replace("_", "-")  # type: ignore[attr-defined]
    what = " ".join((run.__doc__ or "").split())
    return Attack(name, what, run, held, short, **more)  # type: ignore[arg-type]


YARDSTICK = _attack(outsiders.checks, Held())
"""As many calls as a well-behaved client can make. Floods are compared with it."""

ATTACKS: Sequence[Attack] = (
    _attack(outsiders.headers_16, OUTSIDER, short=True),
    _attack(outsiders.headers_100, OUTSIDER),
    _attack(outsiders.headers_5000, FLOODING),
    _attack(outsiders.strangers_calls, FLOODING),
    _attack(outsiders.health_watchers, OUTSIDER),
    _attack(outsiders.unread_checks, FLOODING),
    _attack(outsiders.unread_statuses, FLOODING, seconds=15),
    _attack(outsiders.half_body, OUTSIDER, short=True),
    _attack(outsiders.byte_a_second, OUTSIDER),
    _attack(outsiders.watch_and_cancel, FLOODING),
    _attack(outsiders.watch_window_0, OUTSIDER, short=True),
    _attack(outsiders.watch_names, FLOODING),
    _attack(outsiders.empty_items, OUTSIDER, short=True),
    _attack(outsiders.unread_no_key, FLOODING, short=True),
    _attack(outsiders.unread_wrong_key, FLOODING),
    _attack(outsiders.rapid_reset, FLOODING, short=True),
    _attack(outsiders.continuation_flood, FLOODING),
    _attack(outsiders.huge_headers, FLOODING),
    _attack(outsiders.header_references, FLOODING),
    _attack(outsiders.herd, FLOODING),
    _attack(outsiders.slow_windows, FLOODING),
    _attack(outsiders.ping_flood, FLOODING),
    _attack(outsiders.settings_flood, FLOODING),
    _attack(outsiders.idle_connections, FLOODING),
    _attack(outsiders.full_table, FLOODING),
    _attack(outsiders.reflection_idle, OUTSIDER),
    _attack(outsiders.gzip_bombs, FLOODING),
    _attack(outsiders.slow_tls, OUTSIDER, tls=True),
    _attack(outsiders.garbage, FLOODING),
    _attack(outsiders.http1, FLOODING),
    _attack(outsiders.open_close, FLOODING),
    _attack(outsiders.odd_requests, FLOODING),
    _attack(tenants.same_scope, PAYING, short=True),
    _attack(tenants.known_resets, PAYING),
    _attack(tenants.many_demands, PAYING),
    _attack(tenants.list_states, PAYING, short=True),
    _attack(tenants.event_types, PAYING),
    _attack(tenants.create_cidrs, PAYING),
    _attack(tenants.create_metadata, PAYING),
    _attack(tenants.create_scopes, PAYING),
    _attack(tenants.update_mask, PAYING, short=True),
    _attack(tenants.fat_batches, PAYING, short=True),
    _attack(tenants.fat_list, PAYING, short=True),
    _attack(tenants.fat_verifies, PAYING, options=SMALL_CACHE),
    _attack(tenants.creates, PAYING, cost=10),
    _attack(tenants.lists, PAYING, keys=20_000),
    _attack(tenants.unread_lists, PAYING, keys=20_000),
    _attack(tenants.unread_fat_lists, PAYING, options=SMALL_CACHE),
    _attack(tenants.unread_notices, PAYING, options=SMALL_CACHE),
    _attack(tenants.heavy_verifies, PAYING),
    _attack(tenants.heavy_batches, PAYING, short=True),
    _attack(tenants.watch_all, PAYING, seconds=15, seconds_full=15),
    _attack(tenants.watch_unread, PAYING),
    _attack(tenants.wrong_secrets, PAYING, cost=10, new_pepper=True),
    _attack(
        accidents.write_lock,
        Held(excused=ANYTHING_THAT_WRITES, slowest={"Verify": 3, "Revoke": 12}, recovery=5),
        database="sqlite",
        seconds=12,
        seconds_full=30,
    ),
    _attack(
        accidents.database_stands_still,
        Held(excused=EVERYTHING, slowest={"Verify": 3, "unseen": 3, "denied": 3, "Revoke": 12}, recovery=5),
        database="postgresql",
        seconds=10,
        seconds_full=10,
    ),
    _attack(accidents.gone_rotates, PAYING, cost=10, finishes=True),
    _attack(accidents.gone_creates, PAYING, cost=10, finishes=True),
    _attack(accidents.silent_webhooks, PAYING, options=("--webhook-allow-loopback",)),
    _attack(accidents.nameless_webhooks, PAYING),
)

BY_NAME = {attack.name: attack for attack in (*ATTACKS, YARDSTICK)}
