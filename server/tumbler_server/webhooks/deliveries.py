"""Deliveries: what waits to be sent where, and what became of each attempt.

An endpoint is the unit of patience: one that fails is asked again by one delivery at a time, so that no dead receiver
takes the senders from the others, however much waits for it.
"""

import enum
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import peewee

from tumbler_server.clock import DAY, HOUR, MINUTE, NEVER, SECOND
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow, DeliveryRow, EndpointRow

DELAYS = (5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR)
"""How long after each attempt that failed comes the next; the last of them again and again until it is given up."""

JITTER = 0.1
"""Delays are longer by up to this share, by chance, so that what failed together does not come back together."""

LONGEST_RETRY_AFTER = DAY
"""A receiver that asks for more patience than this gets this much."""

_LONGEST_WAIT = LONGEST_RETRY_AFTER + HOUR
"""Nothing that was put off by a clock that is right is put off for longer."""

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


def due_endpoints(store: Store, now: int, limit: int) -> list[Any]:
    """Return endpoints that something waits for, those that have waited longest first."""
    return store.select(
        EndpointRow.select()
        .where(_come(EndpointRow.next_attempt_time, now))
        .order_by(EndpointRow.next_attempt_time)
        .limit(limit)
    )


def due_deliveries(store: Store, endpoint_id: str, now: int, busy: Collection[int], limit: int) -> list[Any]:
    """Return deliveries that wait for an endpoint, but for those that are being sent, the earliest first."""
    waiting = DeliveryRow.endpoint_id == endpoint_id
    query = DeliveryRow.select().where(waiting & _come(DeliveryRow.next_attempt_time, now))
    rows = store.select(query.order_by(DeliveryRow.next_attempt_time, DeliveryRow.revision).limit(limit + len(busy)))
    return [row for row in rows if row.revision not in busy][:limit]


def keys_of(store: Store, due: Sequence[Any]) -> dict[str, Any]:
    """Return the rows of the deliveries' keys as they are now, by their ids."""
    key_ids = sorted({delivery.key_id for delivery in due})
    return {row.id: row for row in store.select(ApiKeyRow.select().where(ApiKeyRow.id.in_(key_ids)))} if due else {}


def settle(transaction: Transaction, settled: Sequence[Any], state: State) -> None:
    """End deliveries without an attempt."""
    for delivery in settled:
        transaction.run(DeliveryRow.update(state=int(state), next_attempt_time=NEVER).where(_unchanged(delivery)))


def record(
    transaction: Transaction, delivery: Any, outcome: Outcome, now: int, chance: Callable[[], float] = random.random
) -> State:
    """Write down what came of an attempt, and return what has become of the delivery by it."""
    state, next_time = _next(delivery, outcome, now, chance)
    noted = transaction.change(
        DeliveryRow.update(
            state=int(state),
            attempts=DeliveryRow.attempts + 1,
            tries=DeliveryRow.tries + 1,
            next_attempt_time=next_time,
            last_attempt_time=now,
            last_status=outcome.status,
            last_error=outcome.error,
        ).where(_unchanged(delivery))
    )
    if not noted:  # another process has sent it meanwhile, or somebody has asked to send it again
        return state
    if state is State.DELIVERED:
        transaction.run(EndpointRow.update(failures=0).where(EndpointRow.id == delivery.endpoint_id))
        reschedule(transaction, delivery.endpoint_id, 0)
    elif state is State.ENDPOINT_OFF:
        _turn_off(transaction, delivery.endpoint_id, now)
    else:
        _note_failure(transaction, delivery.endpoint_id, outcome, now)
    return state


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


def _come(moment: peewee.Field, now: int) -> peewee.Expression:
    """Return the condition that a time has come, or can only have been set by a clock that was far ahead."""
    come: peewee.Expression = (moment <= now) | ((moment > now + _LONGEST_WAIT) & (moment < NEVER))
    return come


def _unchanged(delivery: Any) -> peewee.Expression:
    unchanged: peewee.Expression = (
        (DeliveryRow.revision == delivery.revision)
        & (DeliveryRow.state == int(State.PENDING))
        & (DeliveryRow.attempts == delivery.attempts)
        & (DeliveryRow.give_up_time == delivery.give_up_time)
    )
    return unchanged


def _next(delivery: Any, outcome: Outcome, now: int, chance: Callable[[], float]) -> tuple[State, int]:
    if 200 <= outcome.status < 300 and not outcome.error:
        return State.DELIVERED, NEVER
    if outcome.status == 410:
        return State.ENDPOINT_OFF, NEVER
    delay = DELAYS[min(delivery.tries, len(DELAYS) - 1)]
    next_time = now + int(delay * (1 + JITTER * chance()))
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
