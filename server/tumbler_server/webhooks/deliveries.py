"""Deliveries: the messages that are pending for each endpoint, and the outcome of each attempt.

Backoff is per endpoint: a failing endpoint is retried with one delivery at a time, so a dead receiver with a long queue
does not take the senders from the others. Fairness is per project: due deliveries are chosen project by project, so
no single project fills the result of a query.
"""

import enum
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import peewee

from tumbler_server.clock import DAY, HOUR, MINUTE, NEVER, SECOND
from tumbler_server.limits import WEBHOOKS_PENDING
from tumbler_server.store.database import Read, Store, Transaction
from tumbler_server.store.models import ApiKeyRow, DeliveryRow, EndpointRow

DELAYS = (5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR)
"""Delays before the next attempt, by the number of failed ones. The last delay repeats until the delivery fails."""

JITTER = 0.1
"""Each delay is longer by a random share up to this, so that deliveries that failed together spread out."""

LONGEST_RETRY_AFTER = DAY
"""The longest Retry-After that is honored, in microseconds. A longer one counts as this."""

_LONGEST_WAIT = LONGEST_RETRY_AFTER + HOUR
"""The longest delay that a correct clock can set. A delivery that is set for later than this is due as well."""

_PAUSES = (5 * SECOND, 10 * SECOND, 20 * SECOND, 40 * SECOND, MINUTE)
"""Pauses of an endpoint by its number of consecutive failures, whatever else is pending for it."""


class DeliveryState(enum.IntEnum):
    """The state of a delivery, in the proto's numbers."""

    PENDING = 1
    DELIVERED = 2
    FAILED = 3
    OUTDATED = 4
    ENDPOINT_OFF = 5


@dataclass(frozen=True)
class AttemptOutcome:
    """The outcome of an attempt. ``status`` is the HTTP status, or 0 without an answer. ``error`` is our own text."""

    status: int = 0
    error: str = ""
    retry_after: int | None = None


class Delivery(NamedTuple):
    """The columns of a pending delivery."""

    revision: int
    id: str
    endpoint_id: str
    project_id: str
    key_id: str
    url: str
    type: int
    event_time: int
    detail: str
    attempts: int
    tries: int
    give_up_time: int


class Endpoint(NamedTuple):
    """The columns of an endpoint that are needed to send to it."""

    id: str
    project_id: str
    url: str
    failures: int
    secret: bytes
    pepper_id: str
    previous_secret: bytes | None
    previous_pepper_id: str
    previous_expire_time: int


# The conditions are literals, so that databases match them to the indexes of m0005_webhooks.
_WAITS = f"next_attempt_time < {NEVER}"
_KINDS = {False: f"failures = 0 AND {_WAITS}", True: f"failures > 0 AND {_WAITS}"}
_PROJECTS = {
    failing: f"""
        WITH RECURSIVE found (project_id, number) AS (
          SELECT (SELECT MIN(project_id) FROM webhook_endpoint WHERE {kind} AND project_id > ?), 1
          UNION ALL
          SELECT (SELECT MIN(e.project_id) FROM webhook_endpoint e WHERE {kind} AND e.project_id > found.project_id),
                 number + 1
          FROM found WHERE found.project_id IS NOT NULL AND number < ?
        )
        SELECT project_id,
          (SELECT MIN(next_attempt_time) FROM webhook_endpoint e WHERE {kind} AND e.project_id = found.project_id),
          (SELECT MAX(next_attempt_time) FROM webhook_endpoint e WHERE {kind} AND e.project_id = found.project_id)
        FROM found WHERE project_id IS NOT NULL ORDER BY number
    """  # noqa: S608
    for failing, kind in _KINDS.items()
}
_DUE_ENDPOINTS = {
    failing: f"SELECT {', '.join(Endpoint._fields)} FROM webhook_endpoint WHERE {kind} "  # noqa: S608
    "AND project_id = ? AND (next_attempt_time <= ? OR next_attempt_time > ?) ORDER BY next_attempt_time LIMIT ?"
    for failing, kind in _KINDS.items()
}

# Plain SQL: these run for each of a hundred thousand deliveries, and the ORM builds a statement slower than it runs.
_DUE = (
    f"SELECT {', '.join(Delivery._fields)} FROM webhook_delivery WHERE endpoint_id = ? "  # noqa: S608
    f"AND (next_attempt_time <= ? OR (next_attempt_time > ? AND next_attempt_time < {NEVER})) "
    "ORDER BY next_attempt_time, revision LIMIT ?"
)
_SAME = f"WHERE revision = ? AND state = {int(DeliveryState.PENDING)} AND attempts = ? AND give_up_time = ?"
"""Matches the row unless it has changed since it was read."""
_SETTLED = f"UPDATE webhook_delivery SET state = ?, next_attempt_time = {NEVER} {_SAME}"  # noqa: S608
_DELIVERED = (
    f"UPDATE webhook_delivery SET state = {int(DeliveryState.DELIVERED)}, next_attempt_time = {NEVER}, "  # noqa: S608
    f"attempts = attempts + 1, tries = tries + 1, last_attempt_time = ?, last_status = ?, last_error = '' {_SAME}"
)
_FAILED = (
    "UPDATE webhook_delivery SET state = ?, next_attempt_time = ?, "  # noqa: S608
    f"attempts = attempts + 1, tries = tries + 1, last_attempt_time = ?, last_status = ?, last_error = ? "
    f"{_SAME} RETURNING revision"
)
_ANSWERED = (
    "UPDATE webhook_endpoint SET failures = 0, next_attempt_time = "  # noqa: S608
    f"COALESCE((SELECT MIN(next_attempt_time) FROM webhook_delivery WHERE endpoint_id = webhook_endpoint.id), {NEVER}) "
    f"WHERE id = ? AND off_time = {NEVER}"
)

_PENDING = f"SELECT COUNT(*) FROM (SELECT 1 FROM webhook_delivery WHERE {_WAITS} AND project_id = ? LIMIT ?) AS waiting"  # noqa: S608
_GIVEN_UP = (
    f"UPDATE webhook_delivery SET state = {int(DeliveryState.FAILED)}, next_attempt_time = {NEVER}, last_error = ? "  # noqa: S608
    f"WHERE revision IN (SELECT revision FROM webhook_delivery WHERE {_WAITS} AND project_id = ? "
    "ORDER BY revision LIMIT ?) RETURNING endpoint_id"
)
_TOO_MANY = f"given up: more than {WEBHOOKS_PENDING.most:,} others of the project were waiting"


def projects_after(store: Store, failing: bool, project_id: str, now: int, limit: int) -> list[tuple[str, bool]]:
    """Return the next projects, in order of their ids, with pending deliveries to endpoints of one kind.

    The flag tells whether one of these endpoints is due. Each project costs a few index look-ups, however long its
    queue is.
    """
    rows = store.read(_PROJECTS[failing], (project_id, limit))
    far_ahead = now + _LONGEST_WAIT
    return [(name, first <= now or last > far_ahead) for name, first, last in rows]


def due_endpoints(store: Store, project_id: str, failing: bool, now: int, limit: int) -> list[Endpoint]:
    """Return a project's endpoints of one kind that are due, the longest waiting first."""
    rows = store.read(_DUE_ENDPOINTS[failing], (project_id, now, now + _LONGEST_WAIT, limit))
    return list(map(Endpoint._make, rows))


def due_deliveries(store: Store, endpoint_id: str, now: int, busy: Collection[int], limit: int) -> list[Delivery]:
    """Return an endpoint's due deliveries, the earliest first, without the ``busy`` ones that are being sent."""
    rows = store.read(_DUE, (endpoint_id, now, now + _LONGEST_WAIT, limit + len(busy)))
    return [each for each in map(Delivery._make, rows) if each.revision not in busy][:limit]


def keys_of(store: Store, due: Sequence[Delivery]) -> dict[str, Any]:
    """Return, by id, the current columns of the deliveries' keys that messages need."""
    if not due:
        return {}
    columns = (
        ApiKeyRow.id, ApiKeyRow.active, ApiKeyRow.expire_time, ApiKeyRow.revoke_time, ApiKeyRow.replaced_by_key_id,
        ApiKeyRow.rotation_due_revision, ApiKeyRow.webhook_url,
    )  # fmt: skip
    query = ApiKeyRow.select(*columns).where(ApiKeyRow.id.in_(sorted({each.key_id for each in due})))
    return {row.id: row for row in store.select(query.namedtuples())}


def explained(read: Read, due: Sequence[Any]) -> set[int]:
    """Return the revisions of the deliveries that match an event in the log, kept events included."""
    if not due:
        return set()
    slots = ", ".join("?" * len(due))
    events = read(
        f"SELECT revision, key_id, project_id, type, time, detail FROM event WHERE revision IN ({slots})",  # noqa: S608
        [each.revision for each in due],
    )
    told = {tuple(event) for event in events}
    return {
        each.revision
        for each in due
        if (each.revision, each.key_id, each.project_id, each.type, each.event_time, each.detail) in told
    }


def settle(transaction: Transaction, settled: Sequence[Delivery], state: DeliveryState) -> None:
    """End deliveries without an attempt."""
    if settled:
        transaction.run_many(_SETTLED, [(int(state), *_unchanged(each)) for each in settled])
    for endpoint_id in sorted({each.endpoint_id for each in settled}):
        reschedule(transaction, endpoint_id, 0)


def record(transaction: Transaction, done: Sequence[tuple[Delivery, AttemptOutcome]], now: int) -> list[DeliveryState]:
    """Record the outcomes of attempts, and return the new state of each delivery."""
    ends = [(each, outcome, *_next(each, outcome, now)) for each, outcome in done]
    delivered = [(each, outcome.status) for each, outcome, state, _ in ends if state is DeliveryState.DELIVERED]
    if delivered:
        transaction.run_many(_DELIVERED, [(now, status, *_unchanged(each)) for each, status in delivered])
        transaction.run_many(_ANSWERED, [(name,) for name in sorted({each.endpoint_id for each, _ in delivered})])
    # Failures last: where an endpoint has answered both ways, it is its patience that counts.
    for each, outcome, state, next_time in ends:
        if state is not DeliveryState.DELIVERED:
            _record_failure(transaction, each, outcome, state, next_time, now)
    return [state for *_, state, _ in ends]


def _record_failure(
    transaction: Transaction,
    delivery: Delivery,
    outcome: AttemptOutcome,
    state: DeliveryState,
    next_time: int,
    now: int,
) -> None:
    values = (int(state), next_time, now, outcome.status, outcome.error)
    if not transaction.read(
        _FAILED, (*values, *_unchanged(delivery))
    ):  # another process has sent it in the meantime, or a resend was requested
        return
    if state is DeliveryState.ENDPOINT_OFF:
        _turn_off(transaction, delivery.endpoint_id, now)
    else:
        _note_failure(transaction, delivery.endpoint_id, outcome, now)


def send_again(transaction: Transaction, delivery: Any, now: int, give_up_time: int) -> None:
    """Make a delivery due at once, with as much time for retries as a new one."""
    transaction.run(
        DeliveryRow.update(
            state=int(DeliveryState.PENDING), tries=0, give_up_time=give_up_time, next_attempt_time=now
        ).where(DeliveryRow.revision == delivery.revision)
    )
    transaction.run(
        EndpointRow.update(off_time=NEVER, failures=0, next_attempt_time=now).where(
            EndpointRow.id == delivery.endpoint_id
        )
    )


def pending(read: Read, project_id: str, most: int) -> int:
    """Return the number of a project's pending deliveries. Counting stops at ``most``."""
    ((number,),) = read(_PENDING, (project_id, most))
    return int(number)


def give_up_oldest(transaction: Transaction, project_id: str, number: int) -> None:
    """Fail so many of a project's pending deliveries, those of the oldest events first."""
    given_up = transaction.read(_GIVEN_UP, (_TOO_MANY, project_id, number))
    names = sorted({endpoint_id for (endpoint_id,) in given_up})
    for endpoint in transaction.select(EndpointRow.select().where(EndpointRow.id.in_(names))):
        reschedule(transaction, endpoint.id, endpoint.next_attempt_time)  # no sooner: it may be backing off


def reschedule(transaction: Transaction, endpoint_id: str, not_before: int) -> None:
    """Set an endpoint's next attempt to the time of its earliest delivery, but no sooner than ``not_before``."""
    first = DeliveryRow.select(peewee.fn.MIN(DeliveryRow.next_attempt_time)).where(
        DeliveryRow.endpoint_id == endpoint_id
    )
    ((moment,),) = transaction.select(first.tuples())
    next_time = NEVER if moment in (None, NEVER) else max(int(moment), not_before)
    transaction.run(
        EndpointRow.update(next_attempt_time=next_time).where(
            (EndpointRow.id == endpoint_id) & (EndpointRow.off_time == NEVER)
        )
    )


def _unchanged(delivery: Delivery) -> tuple[int, int, int]:
    """Return the parameters of ``_SAME``."""
    return delivery.revision, delivery.attempts, delivery.give_up_time


def _next(delivery: Delivery, outcome: AttemptOutcome, now: int) -> tuple[DeliveryState, int]:
    if 200 <= outcome.status < 300 and not outcome.error:
        return DeliveryState.DELIVERED, NEVER
    if outcome.status == 410:
        return DeliveryState.ENDPOINT_OFF, NEVER
    delay = DELAYS[min(delivery.tries, len(DELAYS) - 1)]
    next_time = now + int(delay * (1 + JITTER * random.random()))  # noqa: S311 - jitter, no secret
    if outcome.retry_after is not None:
        next_time = max(next_time, now + min(outcome.retry_after, LONGEST_RETRY_AFTER))
    if next_time > delivery.give_up_time:
        return DeliveryState.FAILED, NEVER
    return DeliveryState.PENDING, next_time


def _turn_off(transaction: Transaction, endpoint_id: str, now: int) -> None:
    transaction.run(EndpointRow.update(off_time=now, next_attempt_time=NEVER).where(EndpointRow.id == endpoint_id))
    transaction.run(
        DeliveryRow.update(state=int(DeliveryState.ENDPOINT_OFF), next_attempt_time=NEVER).where(
            (DeliveryRow.endpoint_id == endpoint_id) & (DeliveryRow.next_attempt_time < NEVER)
        )
    )


def _note_failure(transaction: Transaction, endpoint_id: str, outcome: AttemptOutcome, now: int) -> None:
    (endpoint,) = transaction.select(EndpointRow.select().where(EndpointRow.id == endpoint_id))
    failures = min(endpoint.failures + 1, 1_000)
    pause = _PAUSES[min(failures, len(_PAUSES)) - 1]
    if outcome.retry_after is not None:
        pause = max(pause, min(outcome.retry_after, LONGEST_RETRY_AFTER))
    transaction.run(EndpointRow.update(failures=failures).where(EndpointRow.id == endpoint_id))
    reschedule(transaction, endpoint_id, now + pause)
