"""Deliveries: what waits to be sent where, and what became of each attempt.

An endpoint is the unit of patience: one that fails is asked again by one delivery at a time, so that no dead receiver
takes the senders from the others, however much waits for it. A project is the unit of fairness: what is due is chosen
project by project, so that no query is filled by one of them.
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
"""How long after each attempt that failed comes the next; the last of them again and again until it is given up."""

JITTER = 0.1
"""Delays are longer by up to this share, by chance, so that what failed together does not come back together."""

LONGEST_RETRY_AFTER = DAY
"""A receiver that asks for more patience than this gets this much."""

_LONGEST_WAIT = LONGEST_RETRY_AFTER + HOUR
"""Nothing that was put off by a clock that is right is put off for longer: what is later than this is due as well."""

_PAUSES = (5 * SECOND, 10 * SECOND, 20 * SECOND, 40 * SECOND, MINUTE)
"""How long an endpoint is left alone after failures in a row, whatever else waits for it."""


class State(enum.IntEnum):
    """What has become of a delivery; the numbers are the proto's."""

    PENDING = 1
    DELIVERED = 2
    FAILED = 3
    OUTDATED = 4
    ENDPOINT_OFF = 5


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt. ``status`` is HTTP's, 0 where there was no answer; ``error`` is in our words."""

    status: int = 0
    error: str = ""
    retry_after: int | None = None


class Delivery(NamedTuple):
    """A delivery that waits to be sent, as its row is."""

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
    """What is needed of an endpoint to send to it, as its row is."""

    id: str
    project_id: str
    url: str
    failures: int
    secret: bytes
    pepper_id: str
    previous_secret: bytes | None
    previous_pepper_id: str
    previous_expire_time: int


# The conditions stand as literals, by which databases know the indexes of m0005_webhooks.
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

# Not by the ORM: these are for each of a hundred thousand, and it takes longer to make its statements than to run them.
_DUE = (
    f"SELECT {', '.join(Delivery._fields)} FROM webhook_delivery WHERE endpoint_id = ? "  # noqa: S608
    f"AND (next_attempt_time <= ? OR (next_attempt_time > ? AND next_attempt_time < {NEVER})) "
    "ORDER BY next_attempt_time, revision LIMIT ?"
)
_SAME = f"WHERE revision = ? AND state = {int(State.PENDING)} AND attempts = ? AND give_up_time = ?"
"""The row, unless somebody has changed it since it was read."""
_SETTLED = f"UPDATE webhook_delivery SET state = ?, next_attempt_time = {NEVER} {_SAME}"  # noqa: S608
_DELIVERED = (
    f"UPDATE webhook_delivery SET state = {int(State.DELIVERED)}, next_attempt_time = {NEVER}, "  # noqa: S608
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
    f"UPDATE webhook_delivery SET state = {int(State.FAILED)}, next_attempt_time = {NEVER}, last_error = ? "  # noqa: S608
    f"WHERE revision IN (SELECT revision FROM webhook_delivery WHERE {_WAITS} AND project_id = ? "
    "ORDER BY revision LIMIT ?) RETURNING endpoint_id"
)
_TOO_MANY = f"given up: more than {WEBHOOKS_PENDING.most:,} others of the project were waiting"


def projects_after(store: Store, failing: bool, project_id: str, now: int, limit: int) -> list[tuple[str, bool]]:
    """Return the next projects, in the order of their ids, with endpoints of one kind that something waits for.

    Each with whether one of them is due. Costs a few look-ups in an index for each project, however much waits for it.
    """
    rows = store.read(_PROJECTS[failing], (project_id, limit))
    far_ahead = now + _LONGEST_WAIT
    return [(name, first <= now or last > far_ahead) for name, first, last in rows]


def due_endpoints(store: Store, project_id: str, failing: bool, now: int, limit: int) -> list[Endpoint]:
    """Return a project's endpoints of one kind that are due, those that have waited longest first."""
    rows = store.read(_DUE_ENDPOINTS[failing], (project_id, now, now + _LONGEST_WAIT, limit))
    return list(map(Endpoint._make, rows))


def due_deliveries(store: Store, endpoint_id: str, now: int, busy: Collection[int], limit: int) -> list[Delivery]:
    """Return deliveries that wait for an endpoint, but for those that are being sent, the earliest first."""
    rows = store.read(_DUE, (endpoint_id, now, now + _LONGEST_WAIT, limit + len(busy)))
    return [each for each in map(Delivery._make, rows) if each.revision not in busy][:limit]


def keys_of(store: Store, due: Sequence[Delivery]) -> dict[str, Any]:
    """Return what messages need of the deliveries' keys, as they are now, by their ids."""
    if not due:
        return {}
    columns = (
        ApiKeyRow.id, ApiKeyRow.active, ApiKeyRow.expire_time, ApiKeyRow.revoke_time, ApiKeyRow.replaced_by_key_id,
        ApiKeyRow.rotation_due_revision, ApiKeyRow.webhook_url,
    )  # fmt: skip
    query = ApiKeyRow.select(*columns).where(ApiKeyRow.id.in_(sorted({each.key_id for each in due})))
    return {row.id: row for row in store.select(query.namedtuples())}


def explained(read: Read, due: Sequence[Any]) -> set[int]:
    """Return the revisions of those deliveries that an event in the log, or a kept one, explains."""
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


def settle(transaction: Transaction, settled: Sequence[Delivery], state: State) -> None:
    """End deliveries without an attempt."""
    if settled:
        transaction.run_many(_SETTLED, [(int(state), *_unchanged(each)) for each in settled])
    for endpoint_id in sorted({each.endpoint_id for each in settled}):
        reschedule(transaction, endpoint_id, 0)


def record(transaction: Transaction, done: Sequence[tuple[Delivery, Outcome]], now: int) -> list[State]:
    """Write down what came of attempts, and return what has become of each delivery by it."""
    ends = [(each, outcome, *_next(each, outcome, now)) for each, outcome in done]
    delivered = [(each, outcome.status) for each, outcome, state, _ in ends if state is State.DELIVERED]
    if delivered:
        transaction.run_many(_DELIVERED, [(now, status, *_unchanged(each)) for each, status in delivered])
        transaction.run_many(_ANSWERED, [(name,) for name in sorted({each.endpoint_id for each, _ in delivered})])
    # Failures last: where an endpoint has answered both ways, it is its patience that counts.
    for each, outcome, state, next_time in ends:
        if state is not State.DELIVERED:
            _record_failure(transaction, each, outcome, state, next_time, now)
    return [state for *_, state, _ in ends]


def _record_failure(
    transaction: Transaction, delivery: Delivery, outcome: Outcome, state: State, next_time: int, now: int
) -> None:
    values = (int(state), next_time, now, outcome.status, outcome.error)
    if not transaction.read(
        _FAILED, (*values, *_unchanged(delivery))
    ):  # another process has sent it meanwhile, or somebody has asked to send it again
        return
    if state is State.ENDPOINT_OFF:
        _turn_off(transaction, delivery.endpoint_id, now)
    else:
        _note_failure(transaction, delivery.endpoint_id, outcome, now)


def send_again(transaction: Transaction, delivery: Any, now: int, give_up_time: int) -> None:
    """Have a delivery sent once more, at once, and for as long as if it were new."""
    transaction.run(
        DeliveryRow.update(state=int(State.PENDING), tries=0, give_up_time=give_up_time, next_attempt_time=now).where(
            DeliveryRow.revision == delivery.revision
        )
    )
    transaction.run(
        EndpointRow.update(off_time=NEVER, failures=0, next_attempt_time=now).where(
            EndpointRow.id == delivery.endpoint_id
        )
    )


def pending(read: Read, project_id: str, most: int) -> int:
    """Return how many deliveries of a project wait to be sent. More than ``most`` are not counted."""
    ((number,),) = read(_PENDING, (project_id, most))
    return int(number)


def give_up_oldest(transaction: Transaction, project_id: str, number: int) -> None:
    """End so many of a project's deliveries that wait, those of the oldest events first."""
    given_up = transaction.read(_GIVEN_UP, (_TOO_MANY, project_id, number))
    names = sorted({endpoint_id for (endpoint_id,) in given_up})
    for endpoint in transaction.select(EndpointRow.select().where(EndpointRow.id.in_(names))):
        reschedule(transaction, endpoint.id, endpoint.next_attempt_time)  # no sooner: it may have failed


def reschedule(transaction: Transaction, endpoint_id: str, not_before: int) -> None:
    """Set when an endpoint is next sent to: when the first of its deliveries is due, but not before an instant."""
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


def _next(delivery: Delivery, outcome: Outcome, now: int) -> tuple[State, int]:
    if 200 <= outcome.status < 300 and not outcome.error:
        return State.DELIVERED, NEVER
    if outcome.status == 410:
        return State.ENDPOINT_OFF, NEVER
    delay = DELAYS[min(delivery.tries, len(DELAYS) - 1)]
    next_time = now + int(delay * (1 + JITTER * random.random()))  # noqa: S311 - jitter, no secret
    if outcome.retry_after is not None:
        next_time = max(next_time, now + min(outcome.retry_after, LONGEST_RETRY_AFTER))
    if next_time > delivery.give_up_time:
        return State.FAILED, NEVER
    return State.PENDING, next_time


def _turn_off(transaction: Transaction, endpoint_id: str, now: int) -> None:
    transaction.run(EndpointRow.update(off_time=now, next_attempt_time=NEVER).where(EndpointRow.id == endpoint_id))
    transaction.run(
        DeliveryRow.update(state=int(State.ENDPOINT_OFF), next_attempt_time=NEVER).where(
            (DeliveryRow.endpoint_id == endpoint_id) & (DeliveryRow.next_attempt_time < NEVER)
        )
    )


def _note_failure(transaction: Transaction, endpoint_id: str, outcome: Outcome, now: int) -> None:
    (endpoint,) = transaction.select(EndpointRow.select().where(EndpointRow.id == endpoint_id))
    failures = min(endpoint.failures + 1, 1_000)
    pause = _PAUSES[min(failures, len(_PAUSES)) - 1]
    if outcome.retry_after is not None:
        pause = max(pause, min(outcome.retry_after, LONGEST_RETRY_AFTER))
    transaction.run(EndpointRow.update(failures=failures).where(EndpointRow.id == endpoint_id))
    reschedule(transaction, endpoint_id, now + pause)
