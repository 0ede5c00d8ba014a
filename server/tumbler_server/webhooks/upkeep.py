"""Hourly upkeep of webhooks: remove old deliveries and unused endpoints, and reseal secrets under the newest pepper."""

from tumbler_server import clock as clocks
from tumbler_server import logs
from tumbler_server.clock import DAY, HOUR, NEVER, Clock
from tumbler_server.events import history
from tumbler_server.secrets.vault import CannotOpen
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import DeliveryRow, EndpointRow
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.endpoints import Endpoints

INTERVAL = HOUR

BATCH = 500
"""Most deliveries that one transaction removes, since other writers wait for it."""

UNUSED = DAY
"""How long an endpoint and its secret are kept once no key has its URL and nothing is pending for it."""

LOOKED_AT = 200
"""Endpoints that one turn checks for use."""

# Revoked keys, and replaced ones whose grace is over, cause no more webhooks.
_USED = (
    "(EXISTS (SELECT 1 FROM api_key k WHERE k.project_id = e.project_id AND k.webhook_url = e.url "  # noqa: S608
    f"AND k.webhook_url <> '' AND k.revoke_time = {NEVER} AND k.grace_expire_time > ?) "
    "OR EXISTS (SELECT 1 FROM webhook_delivery d "
    f"WHERE d.endpoint_id = e.id AND d.next_attempt_time < {NEVER}))"
)
_LOOK = f"SELECT id, unused_time, {_USED} FROM webhook_endpoint e WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608
_MARK = "UPDATE webhook_endpoint SET unused_time = ? WHERE id = ?"
_FORGET = f"DELETE FROM webhook_endpoint AS e WHERE e.id = ? AND NOT {_USED}"  # noqa: S608

_log = logs.get_logger(__name__)


class Upkeep:
    """Removes deliveries that have ended and are older than ``keep`` microseconds, and unused endpoints; reseals."""

    def __init__(
        self, store: Store, endpoints: Endpoints, clock: Clock, keep: int, monotonic: Clock = clocks.monotonic
    ) -> None:
        self._store = store
        self._endpoints = endpoints
        self._clock = clock
        self._keep = keep
        self._monotonic = monotonic
        self._next = monotonic()
        self._looked_at = ""  # the last endpoint that was checked for use

    def work(self, lease: Lease) -> bool:
        """Do a part of the upkeep if it is due, and return whether there is more."""
        if self._monotonic() < self._next:
            return False
        before = history.first_since(self._store, self._clock() - self._keep)
        removed = self._store.write_serialized(lambda transaction: self._remove(transaction, lease, before))
        if removed == BATCH or self._forget_unused(lease):
            return True
        self._reseal(lease)
        self._next = self._monotonic() + INTERVAL
        return False

    def _remove(self, transaction: Transaction, lease: Lease, before: int) -> int:
        lease.guard(transaction)
        over = (DeliveryRow.revision < before) & (DeliveryRow.state != int(DeliveryState.PENDING))
        oldest = DeliveryRow.select(DeliveryRow.revision).where(over).order_by(DeliveryRow.revision).limit(BATCH)
        revisions = [row.revision for row in transaction.select(oldest)]
        return transaction.change(DeliveryRow.delete().where(DeliveryRow.revision.in_(revisions))) if revisions else 0

    def _forget_unused(self, lease: Lease) -> bool:
        """Check some endpoints, remove those that have been unused for long enough, and return whether there are more.

        An endpoint is marked as used again here, or when its URL is set (``Endpoints.open``).
        """
        now = self._clock()
        found = self._store.read(_LOOK, (now, self._looked_at, LOOKED_AT))
        marks, forgotten = [], []
        for endpoint_id, unused_time, used in found:
            if used == (unused_time == NEVER):
                if not used and now - unused_time >= UNUSED:
                    forgotten.append((endpoint_id, now))
            else:
                marks.append((NEVER if used else now, endpoint_id))

        def work(transaction: Transaction) -> None:
            lease.guard(transaction)
            transaction.run_many(_MARK, marks)
            transaction.run_many(_FORGET, forgotten)

        if marks or forgotten:
            self._store.write_serialized(work)
        self._looked_at = found[-1][0] if len(found) == LOOKED_AT else ""
        return bool(self._looked_at)

    def _reseal(self, lease: Lease) -> None:
        for endpoint in self._store.select(EndpointRow.select().where(EndpointRow.pepper_id != self._endpoints.newest)):

            def work(transaction: Transaction, endpoint: EndpointRow = endpoint) -> None:
                lease.guard(transaction)
                self._endpoints.reseal(transaction, endpoint)

            try:
                self._store.write_serialized(work)
            except CannotOpen:
                _log.warning(
                    "a webhook secret cannot be decrypted, because its pepper is gone: replace it",
                    endpoint_id=endpoint.id,
                )
