"""The outbox: it creates one delivery for each event in the log that a webhook announces."""

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tumbler_server import logs
from tumbler_server.clock import DAY, NEVER, Clock
from tumbler_server.events import log
from tumbler_server.events.log import Event
from tumbler_server.limits import WEBHOOKS_PENDING
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import ApiKeyRow, EndpointRow, OutboxRow
from tumbler_server.webhooks import deliveries
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.messages import TYPES

BATCH = 200
"""Most events that one transaction takes up, since other writers wait for it."""

GIVE_UP_AFTER = 3 * DAY
"""How long a delivery is retried, from its creation."""

_MOST_COUNTED = 10_000
"""Projects whose room is cached. Beyond that, the cache is cleared and all are counted again."""

_INSERT = (
    "INSERT INTO webhook_delivery (revision, id, endpoint_id, project_id, key_id, url, type, event_time, detail, "
    "state, attempts, tries, give_up_time, next_attempt_time, last_attempt_time, last_status, last_error) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?, 0, 0, '')"
)

_PLACE = "SELECT o.revision, h.revision FROM outbox o, log_head h WHERE o.id = 1 AND h.id = 1"

_log = logs.get_logger(__name__)


class Outbox:
    """A reader of the log that creates deliveries, for the webhook URLs that keys have at that moment."""

    def __init__(self, store: Store, clock: Clock, most_pending: int = WEBHOOKS_PENDING.most) -> None:
        self._store = store
        self._clock = clock
        self._most_pending = most_pending
        self._room: dict[str, int] = {}  # by project: a lower bound of how many more may be pending
        self._term = 0

    def work(self, lease: Lease) -> bool:
        """Take up one batch of events, and return whether there may be more."""
        ((reached, newest),) = self._store.read(_PLACE)
        if reached >= newest:
            return False
        events = log.events_after(self._store, reached, BATCH)
        if events[0].revision != reached + 1:
            _log.warning("events were removed before their webhooks were made", events=events[0].revision - reached)
        self._store.write_serialized(lambda transaction: self._take(transaction, lease, reached, events))
        return len(events) == BATCH

    def _take(self, transaction: Transaction, lease: Lease, reached: int, events: Sequence[Event]) -> None:
        lease.guard(transaction)
        if self._term != lease.term:
            self._term = lease.term
            self._room.clear()  # other servers have acted in the meantime
        now = self._clock()
        told = [event for event in events if event.type in TYPES]
        endpoints = _endpoints(transaction, told)
        rows = [_row(event, endpoints[event.key_id], now) for event in told if event.key_id in endpoints]
        if rows:
            transaction.run_many(_INSERT, rows)
            on = sorted({endpoint.id for endpoint in endpoints.values() if endpoint.off_time == NEVER})
            # A failing endpoint keeps its backoff, unless it had nothing pending.
            earlier = (EndpointRow.failures == 0) & (EndpointRow.next_attempt_time > now)
            transaction.run(
                EndpointRow.update(next_attempt_time=now).where(
                    EndpointRow.id.in_(on) & (earlier | (EndpointRow.next_attempt_time == NEVER))
                )
            )
            self._make_room(transaction, Counter(event.project_id for event in told if event.key_id in endpoints))
        transaction.run(
            OutboxRow.update(revision=events[-1].revision).where((OutboxRow.id == 1) & (OutboxRow.revision == reached))
        )

    def _make_room(self, transaction: Transaction, made: Mapping[str, int]) -> None:
        """Fail the oldest deliveries of projects with too many pending: those have had the most attempts.

        Counts only if there may be too many. A transaction that is retried counts sooner, never too little.
        """
        if len(self._room) > _MOST_COUNTED:
            self._room.clear()
        for project_id, number in made.items():
            room = self._room.get(project_id, 0) - number
            if room < 0:
                waiting = deliveries.pending(transaction.read, project_id, self._most_pending + BATCH)
                room = self._most_pending - waiting
            if room < 0:
                deliveries.give_up_oldest(transaction, project_id, -room)
            self._room[project_id] = max(room, 0)


def _endpoints(transaction: Transaction, events: Sequence[Event]) -> dict[str, Any]:
    """Return the endpoint of each key that has one."""
    if not events:
        return {}
    joined = (EndpointRow.project_id == ApiKeyRow.project_id) & (EndpointRow.url == ApiKeyRow.webhook_url)
    query = (
        EndpointRow.select(EndpointRow, ApiKeyRow.id.alias("of_key"))
        .join(ApiKeyRow, on=joined)
        .where(ApiKeyRow.id.in_(sorted({event.key_id for event in events})) & (ApiKeyRow.webhook_url != ""))
        .objects()
    )
    return {endpoint.of_key: endpoint for endpoint in transaction.select(query)}


def _row(event: Event, endpoint: Any, now: int) -> tuple[object, ...]:
    off = endpoint.off_time != NEVER
    return (
        event.revision,
        f"msg_{secrets.token_hex(16)}",
        endpoint.id,
        event.project_id,
        event.key_id,
        endpoint.url,
        event.type,
        event.time,
        event.detail_json,
        int(DeliveryState.ENDPOINT_OFF if off else DeliveryState.PENDING),
        now + GIVE_UP_AFTER,
        NEVER if off else now,
    )
