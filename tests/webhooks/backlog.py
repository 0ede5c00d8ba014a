"""A backlog of deliveries, created without the calls that would cause them."""

from collections.abc import Sequence

import peewee

from tumbler_server.clock import NEVER
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import DeliveryRow, EndpointRow, OutboxRow
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.endpoints import Endpoints


def pile_up(
    store: Store,
    endpoints: Endpoints,
    project_id: str,
    key_id: str,
    urls: Sequence[str],
    now: int,
    each: int = 1,
    failures: int = 0,
) -> None:
    """Create ``each`` pending deliveries for each of a project's URLs, with ``failures`` consecutive failures."""

    def work(transaction: Transaction) -> None:
        for url in urls:
            endpoints.open(transaction, project_id, url, now)
        rows = transaction.select(EndpointRow.select().where(EndpointRow.project_id == project_id))
        ids = {row.url: row.id for row in rows}
        # Create their events too, already passed by the outbox: a delivery without an event is not sent.
        happened = Change(EventType.REVOKED, key_id, project_id, "", now, Actor("", "the tests"))
        first = log.extend(transaction, [happened] * (each * len(urls)))
        transaction.run(OutboxRow.update(revision=first + each * len(urls) - 1))
        made = [
            {
                "revision": first + number, "id": f"msg_{first + number}", "endpoint_id": ids[url],
                "project_id": project_id, "key_id": key_id, "url": url, "type": int(EventType.REVOKED),
                "event_time": now, "detail": "{}", "state": int(DeliveryState.PENDING), "give_up_time": NEVER,
                "next_attempt_time": now,
            }
            for number, url in enumerate(url for url in urls for _ in range(each))
        ]  # fmt: skip
        for batch in peewee.chunked(made, 500):
            transaction.run(DeliveryRow.insert_many(batch))
        transaction.run(
            EndpointRow.update(next_attempt_time=now, failures=failures).where(
                (EndpointRow.project_id == project_id) & (EndpointRow.next_attempt_time == NEVER)
            )
        )

    store.write_serialized(work)
