"""What is done about webhooks once an hour: what is over is forgotten in time, and secrets follow the newest pepper."""

import structlog

from tumbler_server import clock as clocks
from tumbler_server.clock import HOUR, Clock
from tumbler_server.events import history
from tumbler_server.events.lease import Lease
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import DeliveryRow, EndpointRow
from tumbler_server.webhooks.deliveries import State
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.vault import CannotOpen

INTERVAL = HOUR

BATCH = 500
"""Deliveries that one transaction removes at the most, since other writers wait for it."""

_log = structlog.get_logger(__name__)


class Upkeep:
    """Removes deliveries that are over and older than a span, in microseconds, and seals secrets anew."""

    def __init__(
        self, store: Store, endpoints: Endpoints, clock: Clock, keep: int, uptime: Clock = clocks.uptime
    ) -> None:
        self._store = store
        self._endpoints = endpoints
        self._clock = clock
        self._keep = keep
        self._uptime = uptime
        self._next = uptime()

    def work(self, lease: Lease) -> bool:
        """Do a part of it where it is time, and say whether there is more."""
        if self._uptime() < self._next:
            return False
        before = history.first_since(self._store, self._clock() - self._keep)
        removed = self._store.write(lambda transaction: self._remove(transaction, lease, before))
        if removed == BATCH:
            return True
        self._reseal(lease)
        self._next = self._uptime() + INTERVAL
        return False

    def _remove(self, transaction: Transaction, lease: Lease, before: int) -> int:
        lease.guard(transaction)
        over = (DeliveryRow.revision < before) & (DeliveryRow.state != int(State.PENDING))
        oldest = DeliveryRow.select(DeliveryRow.revision).where(over).order_by(DeliveryRow.revision).limit(BATCH)
        revisions = [row.revision for row in transaction.select(oldest)]
        return transaction.change(DeliveryRow.delete().where(DeliveryRow.revision.in_(revisions))) if revisions else 0

    def _reseal(self, lease: Lease) -> None:
        for endpoint in self._store.select(EndpointRow.select().where(EndpointRow.pepper_id != self._endpoints.newest)):

            def work(transaction: Transaction, endpoint: EndpointRow = endpoint) -> None:
                lease.guard(transaction)
                self._endpoints.reseal(transaction, endpoint)

            try:
                self._store.write(work)
            except CannotOpen:
                _log.warning(
                    "a webhook secret cannot be opened, since its pepper is gone: replace it", endpoint_id=endpoint.id
                )
