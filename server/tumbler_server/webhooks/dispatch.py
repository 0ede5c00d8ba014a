"""Sending what waits: a few senders that wait for no receiver longer than they must, and one thread that does the rest.

Senders only send. What is due is chosen, and what came of it written down, by whoever calls ``work``: so they need no
connections to the database, and all that one turn has to write is one transaction.
"""

import datetime
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from tumbler_server import metrics
from tumbler_server.clock import SECOND, Clock
from tumbler_server.events.lease import Lease
from tumbler_server.store.database import Store, Transaction
from tumbler_server.webhooks import deliveries, messages
from tumbler_server.webhooks.deliveries import Outcome, State
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.messages import ClaimToken
from tumbler_server.webhooks.post import Answer, Unsent
from tumbler_server.webhooks.vault import CannotOpen

SENDERS = 16
"""Webhooks that are on their way at the same time."""

LANES = 8
"""Of these, as many may go to one endpoint; to one that has just failed, a single one."""

PATIENCE = 2.0
"""Seconds that the end of the server waits for webhooks under way."""

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
    """Hands what is due to the senders. Its methods are for one thread. ``finished`` is called by others, often."""

    def __init__(self, store: Store, endpoints: Endpoints, post: Post, claim_token: ClaimToken, clock: Clock) -> None:
        self._store = store
        self._endpoints = endpoints
        self._post = post
        self._claim_token = claim_token
        self._clock = clock
        self._sending: dict[int, tuple[str, threading.Thread]] = {}  # by the event's revision: endpoint and sender
        self._done: queue.SimpleQueue[tuple[Any, Outcome]] = queue.SimpleQueue()
        self.finished: Callable[[], None] = lambda: None
        """Called whenever something has been sent, so that ``work`` can be."""

    def work(self, lease: Lease) -> bool:
        """Write down what came of what was sent, and hand out what is due, as far as there are senders for it."""
        written = self._write_down()
        before = len(self._sending)
        now = self._clock()
        for endpoint in deliveries.due_endpoints(self._store, now, limit=4 * SENDERS):
            room = SENDERS - len(self._sending)
            if room <= 0:
                break
            busy = [revision for revision, (endpoint_id, _) in self._sending.items() if endpoint_id == endpoint.id]
            lanes = min((1 if endpoint.failures else LANES) - len(busy), room)
            if lanes > 0:
                due = deliveries.due_deliveries(self._store, endpoint.id, now, busy, lanes)
                self._hand_out(lease, endpoint, due, now)
        return written or len(self._sending) > before

    def drain(self) -> None:
        """Wait until everything that was handed out has been sent, and write down what came of it."""
        for _, sender in list(self._sending.values()):
            sender.join()
        self._write_down()

    def close(self) -> None:
        """Finish what is under way, if it does not take long: what is cut off is sent again, by whoever acts next."""
        until = time.monotonic() + PATIENCE
        for _, sender in list(self._sending.values()):
            sender.join(max(0.0, until - time.monotonic()))
        try:
            self._write_down()
        except Exception as failure:
            _log.warning("what came of some webhooks could not be written down", error=type(failure).__name__)

    def _hand_out(self, lease: Lease, endpoint: Any, due: Sequence[Any], now: int) -> None:
        keys = deliveries.keys_of(self._store, due)
        over: dict[State, list[Any]] = {State.OUTDATED: [], State.FAILED: []}
        for delivery in due:
            key = keys.get(delivery.key_id)
            if key is None or messages.outdated(delivery, key, now):
                over[State.OUTDATED].append(delivery)
            elif now >= delivery.give_up_time:  # nobody was there to send it for so long
                over[State.FAILED].append(delivery)
            else:
                body = messages.body(delivery, key, self._claim_token)
                # A thread for each, that the process does not wait for at its end: one may be held for 15 seconds.
                sender = threading.Thread(
                    target=self._send, args=(endpoint, delivery, body, now), name="webhook", daemon=True
                )
                self._sending[delivery.revision] = (endpoint.id, sender)
                sender.start()
        if any(over.values()):

            def settle(transaction: Transaction) -> None:
                lease.guard(transaction)
                for state, settled in over.items():
                    deliveries.settle(transaction, settled, state)
                deliveries.reschedule(transaction, endpoint.id, 0)

            self._store.write(settle)

    def _write_down(self) -> bool:
        done: list[tuple[Any, Outcome]] = []
        while not self._done.empty():
            done.append(self._done.get())
        if not done:
            return False
        # No lease is asked for: what came of it is true, and counts unless the row has changed since.
        try:
            states = self._store.write(lambda transaction: self._record(transaction, done))
        finally:  # what cannot be written down is as if it had not been sent
            for delivery, _ in done:
                self._sending.pop(delivery.revision, None)
        for state, number in states.items():
            metrics.WEBHOOK_ATTEMPTS.labels(_COUNTED[state]).inc(number)
        return True

    def _record(self, transaction: Transaction, done: Sequence[tuple[Any, Outcome]]) -> Counter[State]:
        now = self._clock()
        return Counter(deliveries.record(transaction, delivery, outcome, now) for delivery, outcome in done)

    def _send(self, endpoint: Any, delivery: Any, body: str, now: int) -> None:
        try:
            outcome = self._attempt(endpoint, delivery, body, now)
        except Exception as failure:
            _log.error("sending a webhook failed", delivery_id=delivery.id, error=type(failure).__name__)
            outcome = Outcome(error="the server failed; its log says more")
        self._done.put((delivery, outcome))
        self.finished()

    def _attempt(self, endpoint: Any, delivery: Any, body: str, now: int) -> Outcome:
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
