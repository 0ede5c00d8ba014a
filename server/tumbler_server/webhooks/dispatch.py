"""Sending of due deliveries: a pool of sender threads, and one thread that does the rest.

Senders only send. The thread that calls ``work`` chooses what is due and records the outcomes. So senders need no
database connections, and one turn records its outcomes in one transaction.
"""

import contextlib
import datetime
import itertools
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tumbler_server import logs, metrics
from tumbler_server.clock import SECOND, Clock
from tumbler_server.limits import WEBHOOKS_SENT
from tumbler_server.secrets.vault import CannotOpen
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.lease import Lease
from tumbler_server.webhooks import deliveries, messages
from tumbler_server.webhooks.deliveries import AttemptOutcome, Delivery, DeliveryState, Endpoint
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.fairness import has_room
from tumbler_server.webhooks.messages import ClaimToken
from tumbler_server.webhooks.post import HttpResponse, PostFailed

SENDERS = 4 * WEBHOOKS_SENT.most
"""Webhooks in flight at the same time. Senders only wait, so many of them cost little."""

LANES = 8
"""Webhooks in flight to one endpoint. An endpoint that failed or was slow the last time gets only one."""

SLOW = 2.0
"""Seconds above which an endpoint's last response makes it count as slow."""

MOST_PROJECTS = 256
"""Projects that one turn looks at. If there are more, the next turn continues after them."""

_MOST_SLOW = 4_096
"""Endpoints that are remembered as slow. When it is full, the oldest entry is evicted."""

_MOST_WRITTEN = 32
"""Most attempts that one transaction records, since other writers wait for it."""

PATIENCE = 2.0
"""Seconds that a stopping server waits for webhooks in flight."""

_NO_SECRET = AttemptOutcome(
    error="its secret cannot be decrypted, because the pepper is gone: replace the webhook secret"
)
_COUNTED = {
    DeliveryState.DELIVERED: "delivered",
    DeliveryState.PENDING: "failed",
    DeliveryState.FAILED: "given_up",
    DeliveryState.ENDPOINT_OFF: "endpoint_off",
}

Post = Callable[[str, bytes, Mapping[str, str], str], HttpResponse]
"""Posts a body with headers to a URL, for a project. Raises ``PostFailed``."""

_log = logs.get_logger(__name__)


class _Underway(NamedTuple):
    """A delivery in flight. ``doubtful`` means that the endpoint failed or was slow the last time."""

    endpoint_id: str
    project_id: str
    doubtful: bool


class Dispatch:
    """The dispatcher, which hands due deliveries to the senders. Its methods are for one thread.

    Sender threads call ``finished``, often. Projects take turns, and each holds at most a share of the senders
    (``shares``). Endpoints that failed or were slow the last time come last, and get at most half of the senders.
    """

    def __init__(
        self,
        store: Store,
        endpoints: Endpoints,
        post: Post,
        claim_token: ClaimToken,
        clock: Clock,
        wall: Clock,
        senders: int = SENDERS,
    ) -> None:
        """Send what is due by ``clock``. Timestamps in messages are by ``wall``: receivers compare them with theirs."""
        self._store = store
        self._endpoints = endpoints
        self._post = post
        self._claim_token = claim_token
        self._clock = clock
        self._wall = wall
        self._most = senders
        self._sending: dict[int, _Underway] = {}  # by the event's revision
        self._slow: dict[str, None] = {}  # ids of slow endpoints, the latest at the end
        self._last = {False: "", True: ""}  # by ``failing``: the project that the last turn ended with
        self._senders = 0
        self._waiting: queue.SimpleQueue[tuple[Endpoint, Delivery, str] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Delivery, AttemptOutcome, float]] = queue.SimpleQueue()
        self.finished: Callable[[], None] = lambda: None
        """A callback after each attempt, which may trigger ``work``."""

    def work(self, lease: Lease) -> bool:
        """Record the outcomes of attempts, and hand what is due to free senders. Return whether there was any work."""
        written = self._write_down()
        now = self._clock()
        waiting = self._choose(now)
        self._hand_out(lease, waiting, now)
        return written or bool(waiting)

    def drain(self) -> None:
        """Wait for everything in flight, and record the outcomes."""
        while self._sending:
            self._write_down(patience=None)

    def close(self) -> None:
        """Wait briefly for what is in flight. The next server to act sends again whatever is cut off."""
        until = time.monotonic() + PATIENCE
        try:
            while self._sending and (left := until - time.monotonic()) > 0:
                self._write_down(left)
        except Exception as failure:
            _log.warning("the outcome of some webhooks could not be recorded", error=type(failure).__name__)
        for _ in range(self._senders):
            self._waiting.put(None)

    def _choose(self, now: int) -> list[tuple[Endpoint, Delivery]]:
        """Return what to send now, up to the number of free senders."""
        chosen: list[tuple[Endpoint, Delivery]] = []
        held = Counter(each.project_id for each in self._sending.values())
        doubtful = sum(each.doubtful for each in self._sending.values())
        most_doubtful = self._most // 2
        for failing in (False, True):
            projects = self._projects(failing, now)
            queues: dict[str, Iterator[tuple[Endpoint, Delivery]]] = {}
            # Round robin: each project gets one sender a round, those that hold fewer first.
            taking = sorted(projects, key=held.__getitem__)
            while taking and not (failing and doubtful >= most_doubtful):
                still = []
                for project_id in taking:
                    if not has_room(held[project_id], self._most - len(self._sending) - len(chosen)):
                        continue
                    if project_id not in queues:
                        queues[project_id] = self._due(project_id, failing, now, doubtful < most_doubtful)
                    for endpoint, delivery in queues[project_id]:
                        if self._doubtful(endpoint):
                            if doubtful >= most_doubtful:
                                break
                            doubtful += 1
                        chosen.append((endpoint, delivery))
                        held[project_id] += 1
                        still.append(project_id)
                        break
                if still and len(self._sending) + len(chosen) == self._most:
                    self._last[failing] = still[-1]  # the projects after it got none, so they come first next time
                taking = still
        return chosen

    def _projects(self, failing: bool, now: int) -> list[str]:
        """Return projects with due endpoints, failing or not, starting after the project that came last."""
        last = self._last[failing]
        found = deliveries.projects_after(self._store, failing, last, now, MOST_PROJECTS)
        if len(found) < MOST_PROJECTS and last:
            seen = {project_id for project_id, _ in found}
            rest = deliveries.projects_after(self._store, failing, "", now, MOST_PROJECTS - len(found))
            found += itertools.takewhile(lambda each: each[0] not in seen, rest)
        if found:
            self._last[failing] = found[-1][0]
        return [project_id for project_id, is_due in found if is_due]

    def _due(self, project_id: str, failing: bool, now: int, doubtful: bool) -> Iterator[tuple[Endpoint, Delivery]]:
        """Yield a project's due deliveries: the first of each endpoint, then the second of each, and so on.

        Unless ``doubtful``, skip doubtful endpoints.
        """
        busy: dict[str, list[int]] = {}
        for revision, each in self._sending.items():
            if each.project_id == project_id:
                busy.setdefault(each.endpoint_id, []).append(revision)
        # Busy endpoints stay due until their outcome is recorded, so allow a whole share beyond them.
        limit = len(busy) + self._most // 4
        found = deliveries.due_endpoints(self._store, project_id, failing, now, limit)
        found = sorted((each for each in found if doubtful or not self._doubtful(each)), key=self._doubtful)
        waiting: dict[str, list[Delivery]] = {}
        for lane in range(LANES):
            for endpoint in found:
                if endpoint.id not in waiting:
                    sent = busy.get(endpoint.id, [])
                    lanes = (1 if self._doubtful(endpoint) else LANES) - len(sent)
                    waiting[endpoint.id] = (
                        deliveries.due_deliveries(self._store, endpoint.id, now, sent, lanes) if lanes > 0 else []
                    )
                if lane < len(waiting[endpoint.id]):
                    yield endpoint, waiting[endpoint.id][lane]

    def _doubtful(self, endpoint: Endpoint) -> bool:
        return endpoint.failures > 0 or endpoint.id in self._slow

    def _hand_out(self, lease: Lease, waiting: Sequence[tuple[Endpoint, Delivery]], now: int) -> None:
        keys = deliveries.keys_of(self._store, [delivery for _, delivery in waiting])
        explained = deliveries.explained(self._store.read, [delivery for _, delivery in waiting])
        over: dict[DeliveryState, list[Delivery]] = {DeliveryState.OUTDATED: [], DeliveryState.FAILED: []}
        for endpoint, delivery in waiting:
            key = keys.get(delivery.key_id)
            if delivery.revision not in explained:
                _log.error("a webhook is not sent: no event explains it", delivery_id=delivery.id)
                over[DeliveryState.FAILED].append(delivery)
            elif key is None or messages.outdated(delivery, key, now):
                over[DeliveryState.OUTDATED].append(delivery)
            elif now >= delivery.give_up_time:  # no server was there to send it in time
                over[DeliveryState.FAILED].append(delivery)
            else:
                self._sending[delivery.revision] = _Underway(endpoint.id, endpoint.project_id, self._doubtful(endpoint))
                self._waiting.put((endpoint, delivery, messages.body(delivery, key, self._claim_token)))
        while self._senders < len(self._sending):
            # Daemon threads, so that a stopping process does not wait: a receiver can hold one for 15 seconds.
            threading.Thread(target=self._send_all, name="webhooks", daemon=True).start()
            self._senders += 1
        if any(over.values()):

            def settle(transaction: Transaction) -> None:
                lease.guard(transaction)
                for state, settled in over.items():
                    deliveries.settle(transaction, settled, state)

            self._store.write_serialized(settle)

    def _write_down(self, patience: float | None = 0) -> bool:
        """Record the outcomes that have arrived, and return whether there were any.

        Waits up to ``patience`` seconds for the first one; None waits without limit.
        """
        done: list[tuple[Delivery, AttemptOutcome]] = []
        with contextlib.suppress(queue.Empty):
            while len(done) < _MOST_WRITTEN:
                block = patience != 0 and not done
                delivery, outcome, took = self._done.get(block, timeout=patience or None)
                done.append((delivery, outcome))
                self._note_pace(delivery.endpoint_id, took)
        if not done:
            return False
        # No lease is needed: an outcome is a fact, and counts unless the row has changed since.
        try:
            states = self._store.write_serialized(
                lambda transaction: deliveries.record(transaction, done, self._clock())
            )
        finally:  # an outcome that cannot be recorded counts as never sent
            for delivery, _ in done:
                self._sending.pop(delivery.revision, None)
        for state, number in Counter(states).items():
            metrics.WEBHOOK_ATTEMPTS.labels(_COUNTED[state]).inc(number)
        return True

    def _note_pace(self, endpoint_id: str, took: float) -> None:
        self._slow.pop(endpoint_id, None)
        if took > SLOW:
            if len(self._slow) == _MOST_SLOW:
                del self._slow[next(iter(self._slow))]
            self._slow[endpoint_id] = None

    def _send_all(self) -> None:
        while job := self._waiting.get():
            endpoint, delivery, body = job
            began = time.monotonic()
            try:
                outcome = self._attempt(endpoint, delivery, body)
            except Exception as failure:
                _log.error("sending a webhook failed", delivery_id=delivery.id, error=type(failure).__name__)
                outcome = AttemptOutcome(error="internal error; the server's log has the details")
            self._done.put((delivery, outcome, time.monotonic() - began))
            self.finished()

    def _attempt(self, endpoint: Endpoint, delivery: Delivery, body: str) -> AttemptOutcome:
        now = self._wall()
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
            answer = self._post(delivery.url, body.encode(), headers, delivery.project_id)
        except PostFailed as failed:
            return AttemptOutcome(error=failed.reason)
        if 200 <= answer.status < 300:
            return AttemptOutcome(answer.status)
        redirect = ", and redirects are not followed" if 300 <= answer.status < 400 else ""
        return AttemptOutcome(answer.status, f"answered {answer.status}{redirect}", answer.retry_after)
