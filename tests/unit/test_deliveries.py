"""Recording the outcomes of webhooks, several at a time."""

import pytest

from tumbler_server.clock import MINUTE, NEVER
from tumbler_server.store.database import Store
from tumbler_server.store.models import DeliveryRow, EndpointRow
from tumbler_server.webhooks import deliveries
from tumbler_server.webhooks.deliveries import AttemptOutcome, Delivery, DeliveryState

NOW = 1_893_456_000_000_000
GOOD = AttemptOutcome(204)
BUSY = AttemptOutcome(429, "answered 429", retry_after=10 * MINUTE)


@pytest.fixture
def waiting(store: Store) -> list[Delivery]:
    """Return three pending deliveries for one endpoint that has failed twice."""
    endpoint = EndpointRow.insert(
        id="e", project_id="acme", url="https://a.test", create_time=NOW, secret=b"s", pepper_id="p", failures=2,
        next_attempt_time=NOW,
    )  # fmt: skip
    rows = [
        {
            "revision": revision, "id": f"msg_{revision}", "endpoint_id": "e", "project_id": "acme", "key_id": "k",
            "url": "https://a.test", "type": 4, "event_time": NOW, "detail": "{}", "state": int(DeliveryState.PENDING),
            "give_up_time": NEVER, "next_attempt_time": NOW,
        }
        for revision in (1, 2, 3)
    ]  # fmt: skip
    store.write_serialized(
        lambda transaction: (transaction.run(endpoint), transaction.run(DeliveryRow.insert_many(rows)))
    )
    return deliveries.due_deliveries(store, "e", NOW, busy=(), limit=10)


def record(store: Store, *done: tuple[Delivery, AttemptOutcome]) -> list[DeliveryState]:
    """Record the outcomes of attempts."""
    return store.write_serialized(lambda transaction: deliveries.record(transaction, done, NOW))


def endpoint(store: Store) -> tuple[int, int]:
    """Return the endpoint's consecutive failures, and the time of its next attempt."""
    (row,) = store.select(EndpointRow.select())
    return row.failures, row.next_attempt_time


def states(store: Store) -> list[DeliveryState]:
    """Return the states of the deliveries, in order."""
    return [DeliveryState(row.state) for row in store.select(DeliveryRow.select().order_by(DeliveryRow.revision))]


def test_all_delivered(store: Store, waiting: list[Delivery]) -> None:
    """A successful endpoint has no failures, and no next attempt while nothing is pending."""
    assert record(store, *((each, GOOD) for each in waiting)) == [DeliveryState.DELIVERED] * 3 == states(store)
    assert endpoint(store) == (0, NEVER)


def test_some_wait(store: Store, waiting: list[Delivery]) -> None:
    """If more is pending, the next attempt is as soon as that is due."""
    record(store, (waiting[0], GOOD))
    assert states(store) == [DeliveryState.DELIVERED, DeliveryState.PENDING, DeliveryState.PENDING]
    assert endpoint(store) == (0, NOW)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_both_ways(store: Store, waiting: list[Delivery], order: tuple[int, ...]) -> None:
    """If an endpoint accepts some deliveries and asks to delay another, it is delayed, in any order of answers."""
    outcomes = [GOOD, BUSY, GOOD]
    record(store, *((waiting[number], outcomes[number]) for number in order))
    assert states(store) == [DeliveryState.DELIVERED, DeliveryState.PENDING, DeliveryState.DELIVERED]
    failures, next_time = endpoint(store)
    assert failures == 1
    assert next_time >= NOW + 10 * MINUTE


@pytest.mark.parametrize("outcome", [GOOD, BUSY, AttemptOutcome(410)], ids=lambda outcome: str(outcome.status))
def test_changed_meanwhile(store: Store, waiting: list[Delivery], outcome: AttemptOutcome) -> None:
    """The outcome of a delivery that another process has recorded meanwhile changes nothing."""
    record(store, (waiting[0], GOOD))
    (before,) = store.select(DeliveryRow.select().where(DeliveryRow.revision == 1).dicts())
    record(store, (waiting[0], outcome))
    (after,) = store.select(DeliveryRow.select().where(DeliveryRow.revision == 1).dicts())
    assert after == before
    assert endpoint(store) == (0, NOW)
