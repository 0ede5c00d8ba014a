"""Sending what waits: a few senders, that wait for no receiver longer than they must, and write down each answer."""

import datetime
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import structlog

from tumbler_server import metrics
from tumbler_server.clock import SECOND, Clock
from tumbler_server.events.lease import Lease
from tumbler_server.store.database import Store
from tumbler_server.webhooks import deliveries, messages
from tumbler_server.webhooks.deliveries import Outcome, State
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.messages import ClaimToken
from tumbler_server.webhooks.post import Answer, Unsent
from tumbler_server.webhooks.vault import CannotOpen

SENDERS = 16
"""Webhooks that are on their way at the same time."""

LANES = 4
"""Of these, as many may go to one endpoint; to one that has just failed, a single one."""

_NO_SECRET = Outcome(error="its secret cannot be opened, since the pepper is gone: replace the webhook secret")
_COUNTED = {
    State.DELIVERED: "delivered",
    State.PENDING: "failed",
    State.FAILED: "given_up",
    State.ENDPOINT_OFF: "endpoint_off",
}

Post = Callable[[str, bytes, Mapping[str, str]], Answer]
"""Sends a body with headers to a URL. Raises ``Unsent``."""

_log = structlog.get_logger(__name__)


class Dispatch:
    """Hands what is due to the senders."""

    def __init__(self, store: Store, endpoints: Endpoints, post: Post, claim_token: ClaimToken, clock: Clock) -> None:
        self._store = store
        self._endpoints = endpoints
        self._post = post
        self._claim_token = claim_token
        self._clock = clock
        self._senders = ThreadPoolExecutor(SENDERS, thread_name_prefix="webhooks")
        self._lock = threading.Lock()
        self._busy: dict[int, str] = {}  # revision → endpoint
        self._sending: set[Future[None]] = set()

    def work(self, lease: Lease) -> bool:
        """Hand out what is due, as far as there are senders for it; never says that there is more to do at once."""
        room = SENDERS - len(self._busy)
        if room <= 0:
            return False
        now = self._clock()
        for endpoint in deliveries.due_endpoints(self._store, now, limit=4 * SENDERS):
            with self._lock:
                busy = {revision for revision, endpoint_id in self._busy.items() if endpoint_id == endpoint.id}
            lanes = min((1 if endpoint.failures else LANES) - len(busy), room)
            if lanes <= 0:
                continue
            for delivery in deliveries.due_deliveries(self._store, endpoint.id, now, busy, lanes):
                with self._lock:
                    self._busy[delivery.revision] = endpoint.id
                sending = self._senders.submit(self._send, lease, endpoint, delivery)
                self._sending.add(sending)
                sending.add_done_callback(self._sending.discard)
                room -= 1
            if room <= 0:
                break
        return False

    def drain(self) -> None:
        """Wait until everything that was handed out is done."""
        wait(list(self._sending))

    def close(self) -> None:
        """Finish what is under way: none of it takes longer than a webhook may."""
        self._senders.shutdown(wait=True, cancel_futures=True)

    def _send(self, lease: Lease, endpoint: Any, delivery: Any) -> None:
        try:
            # A process that was stopped and goes on may have been replaced long ago.
            if lease.held:
                self._attempt(endpoint, delivery)
        except Exception as failure:
            # It stays as it is, and is taken up again.
            _log.error("sending a webhook failed", delivery_id=delivery.id, error=type(failure).__name__)
        finally:
            with self._lock:
                self._busy.pop(delivery.revision, None)

    def _attempt(self, endpoint: Any, delivery: Any) -> None:
        now = self._clock()
        key = deliveries.key_of(self._store, delivery)
        if key is None or messages.outdated(delivery, key, now):
            self._store.write(lambda transaction: deliveries.settle(transaction, delivery, State.OUTDATED))
            return
        if now >= delivery.give_up_time:  # nobody was there to send it for so long
            self._store.write(lambda transaction: deliveries.settle(transaction, delivery, State.FAILED))
            return
        outcome = self._post_it(endpoint, delivery, messages.body(delivery, key, self._claim_token), now)
        state = self._store.write(lambda transaction: deliveries.record(transaction, delivery, outcome, self._clock()))
        metrics.WEBHOOK_ATTEMPTS.labels(_COUNTED[state]).inc()
        if state is State.ENDPOINT_OFF:
            _log.warning("a webhook's receiver is gone, and is not sent to any more", endpoint_id=endpoint.id)

    def _post_it(self, endpoint: Any, delivery: Any, body: str, now: int) -> Outcome:
        try:
            signers = self._endpoints.signers(endpoint, now)
        except CannotOpen:
            return _NO_SECRET
        sent_at = datetime.datetime.fromtimestamp(now // SECOND, datetime.timezone.utc)
        headers = {
            "content-type": "application/json",
            "user-agent": "tumbler",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now // SECOND),
            "webhook-signature": " ".join(signer.sign(delivery.id, sent_at, body) for signer in signers),
        }
        try:
            answer = self._post(delivery.url, body.encode(), headers)
        except Unsent as unsent:
            return Outcome(error=unsent.reason)
        if 200 <= answer.status < 300:
            return Outcome(answer.status)
        redirect = ", and redirects are not followed" if 300 <= answer.status < 400 else ""
        return Outcome(answer.status, f"answered {answer.status}{redirect}", answer.retry_after)
