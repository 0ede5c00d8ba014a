"""Sending what waits: a few senders that wait for no receiver longer than they must, and one thread that does the rest.

Senders only send. What is due is chosen, and what came of it written down, by whoever calls ``work``: so they need no
connections to the database, and all that one turn has to write is one transaction.
"""

import contextlib
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
from tumbler_server.webhooks.deliveries import Delivery, Outcome, State
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
        self._sending: dict[int, str] = {}  # the endpoint, by the event's revision
        self._senders = 0
        self._waiting: queue.SimpleQueue[tuple[Any, Delivery, str, int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Delivery, Outcome]] = queue.SimpleQueue()
        self.finished: Callable[[], None] = lambda: None
        """Called whenever something has been sent, so that ``work`` can be."""

    def work(self, lease: Lease) -> bool:
        """Write down what came of what was sent, and hand out what is due, as far as there are senders for it."""
        written = self._write_down()
        now = self._clock()
        waiting: list[tuple[Any, Delivery]] = []
        for endpoint in deliveries.due_endpoints(self._store, now, limit=4 * SENDERS):
            room = SENDERS - len(self._sending) - len(waiting)
            if room <= 0:
                break
            busy = [revision for revision, endpoint_id in self._sending.items() if endpoint_id == endpoint.id]
            lanes = min((1 if endpoint.failures else LANES) - len(busy), room)
            if lanes > 0:
                due = deliveries.due_deliveries(self._store, endpoint.id, now, busy, lanes)
                waiting += [(endpoint, delivery) for delivery in due]
        self._hand_out(lease, waiting, now)
        return written or bool(waiting)

    def drain(self) -> None:
        """Wait until everything that was handed out has been sent, and write down what came of it."""
        while self._sending:
            self._write_down(patience=None)

    def close(self) -> None:
        """Finish what is under way, if it does not take long: what is cut off is sent again, by whoever acts next."""
        until = time.monotonic() + PATIENCE
        try:
            while self._sending and (left := until - time.monotonic()) > 0:
                self._write_down(left)
        except Exception as failure:
            _log.warning("what came of some webhooks could not be written down", error=type(failure).__name__)
        for _ in range(self._senders):
            self._waiting.put(None)

    def _hand_out(self, lease: Lease, waiting: Sequence[tuple[Any, Delivery]], now: int) -> None:
        keys = deliveries.keys_of(self._store, [delivery for _, delivery in waiting])
        over: dict[State, list[Delivery]] = {State.OUTDATED: [], State.FAILED: []}
        for endpoint, delivery in waiting:
            key = keys.get(delivery.key_id)
            if key is None or messages.outdated(delivery, key, now):
                over[State.OUTDATED].append(delivery)
            elif now >= delivery.give_up_time:  # nobody was there to send it for so long
                over[State.FAILED].append(delivery)
            else:
                self._sending[delivery.revision] = endpoint.id
                self._waiting.put((endpoint, delivery, messages.body(delivery, key, self._claim_token), now))
        while self._senders < len(self._sending):
            # The process does not wait for them at its end: one may be held for 15 seconds.
            threading.Thread(target=self._send_all, name="webhooks", daemon=True).start()
            self._senders += 1
        if any(over.values()):

            def settle(transaction: Transaction) -> None:
                lease.guard(transaction)
                for state, settled in over.items():
                    deliveries.settle(transaction, settled, state)

            self._store.write(settle)

    def _write_down(self, patience: float | None = 0) -> bool:
        """Write down what has come of what was sent, and say whether anything has; wait for that if need be."""
        done: list[tuple[Delivery, Outcome]] = []
        with contextlib.suppress(queue.Empty):
            done.append(self._done.get(block=patience != 0, timeout=patience or None))
            while True:
                done.append(self._done.get_nowait())
        if not done:
            return False
        # No lease is asked for: what came of it is true, and counts unless the row has changed since.
        try:
            states = self._store.write(lambda transaction: deliveries.record(transaction, done, self._clock()))
        finally:  # what cannot be written down is as if it had not been sent
            for delivery, _ in done:
                self._sending.pop(delivery.revision, None)
        for state, number in Counter(states).items():
            metrics.WEBHOOK_ATTEMPTS.labels(_COUNTED[state]).inc(number)
        return True

    def _send_all(self) -> None:
        while job := self._waiting.get():
            endpoint, delivery, body, now = job
            try:
                outcome = self._attempt(endpoint, delivery, body, now)
            except Exception as failure:
                _log.error("sending a webhook failed", delivery_id=delivery.id, error=type(failure).__name__)
                outcome = Outcome(error="the server failed; its log says more")
            self._done.put((delivery, outcome))
            self.finished()

    def _attempt(self, endpoint: Any, delivery: Delivery, body: str, now: int) -> Outcome:
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
