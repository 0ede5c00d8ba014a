"""Assigns keys to calls: callers with the same key share a call, few calls run at a time, and other keys are batched.

No I/O. The caller sends what is returned, and hands in what comes back. Thread-safe.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc

from tumbler._cache import Answer, Cache, Clock, Position, read_answer
from tumbler._redaction import redact
from tumbler._settings import SECOND, Settings
from tumbler.decide import Code, Demand
from tumbler.errors import InvalidRequest, NotAllowed, TumblerError, Unavailable
from tumbler.projects import PROJECT_REQUIRED
from tumbler.v1 import api_key_service_pb2 as pb

MAX_CALLS_IN_FLIGHT = 4
"""Maximum number of calls in flight."""

MAX_BATCH_KEYS = 500
"""Maximum number of keys in a call."""

MAX_BATCH_BYTES = 256 * 1024
"""Maximum size of the requests of one call together. A larger request goes by itself."""

_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

_UNREACHED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""Statuses with which a smaller batch would fail too."""


class Failure(NamedTuple):
    """Why nothing was decided. Each caller makes its own exception: a shared one would collect their tracebacks."""

    kind: type[TumblerError]
    text: str


class Settled(Protocol):
    """A future, of threads or of asyncio."""

    def done(self) -> bool:
        """Return whether it has a result."""

    def set_result(self, result: Any, /) -> None:
        """Set the result and wake all waiting callers."""


class Flight:
    """One key on its way to the server and back, and all callers that wait for it."""

    def __init__(self, request: pb.VerifyRequest, demand: Demand, future: Any, deadline: int) -> None:
        self.request = request
        self.demand = demand
        self.future = future
        self.deadline = deadline
        self.sent_at: int | None = None
        self.position = Position(0, 0, "")
        self.max_batch = MAX_BATCH_KEYS
        """Maximum number of keys in its next call. After a retry: half of the keys in its last call, rounded up."""
        self.refused_cursor = ""


@dataclass(frozen=True, slots=True, repr=False)  # repr() would show keys
class Batch:
    """The flights of the next call: one that goes by Verify, or several that go together by BatchVerify."""

    flights: list[Flight]
    request: pb.VerifyRequest | pb.BatchVerifyRequest

    @property
    def is_single(self) -> bool:
        """Whether it is a Verify of one flight."""
        return isinstance(self.request, pb.VerifyRequest)


class Batcher:
    """Hands out flights and calls. The caller must return every call, with ``answered`` or ``failed``."""

    def __init__(self, settings: Settings, cache: Cache, clock: Clock) -> None:
        self._timeout = int(settings.timeout * SECOND)
        self._settings = settings
        self._cache = cache
        self._clock = clock
        self._joinable: dict[str, Flight] = {}
        self._queue: deque[Flight] = deque()
        self._calls_in_flight = 0
        self._closed: Failure | None = None
        self._lock = threading.Lock()

    def join(self, key: str, demand: Demand, new_future: Callable[[], Settled]) -> tuple[Flight, Batch | None]:
        """Return the flight that will bring the key's answer, and the call to send now, if any.

        Raises:
            Unavailable: The batcher is closed.
            InvalidRequest: The demand cannot be encoded.

        """
        deadline = self._clock() + self._timeout
        with self._lock:
            if self._closed is not None:
                raise self._closed.kind(self._closed.text)
            flight = self._joinable.get(key)
            if flight is not None and (flight.sent_at is None or self._cache.unchanged_since(flight.position)):
                flight.deadline = deadline
                return flight, None
            flight = self._joinable[key] = Flight(self._request(key, demand), demand, new_future(), deadline)
            self._queue.append(flight)
            return flight, self._next_batch()

    def answered(self, batch: Batch, response: Any) -> Batch | None:
        """Settle the flights of a call that succeeded, and return the call to send next."""
        answers = list(response.responses) if not batch.is_single else [response]
        if len(answers) != len(batch.flights):
            return self._settle(batch, [_bad_answer()] * len(batch.flights))
        pairs = zip(batch.flights, answers, strict=True)
        return self._settle(batch, [self._check_answer(*pair, not batch.is_single) for pair in pairs])

    def failed(self, batch: Batch, status: grpc.StatusCode, detail: str) -> Batch | None:
        """Settle or requeue the flights of a call that failed, and return the call to send next."""
        detail = redact(detail)
        outcome: Failure | None
        if status in _REFUSED:
            outcome = Failure(NotAllowed, f"the server refused the verifier's own key: {status.name}: {detail}")
        elif not batch.is_single and status not in _UNREACHED:
            outcome = None  # one of its keys may be at fault, or their number
        elif status is grpc.StatusCode.INVALID_ARGUMENT:
            outcome = self._on_invalid_argument(batch, detail)
        else:
            outcome = Failure(Unavailable, f"the call to the server failed: {status.name}: {detail}")
        return self._settle(batch, [outcome] * len(batch.flights))

    def close(self, text: str) -> None:
        """Fail all waiting callers and refuse new ones."""
        with self._lock:
            self._closed = Failure(Unavailable, text)
            flights, self._joinable = list(self._joinable.values()), {}
            self._queue.clear()
        for flight in flights:
            _finish(flight, self._closed)

    def abandon(self, text: str) -> None:
        """Close, in a forked process. The threads that wait or hold the lock do not exist here."""
        self._lock = threading.Lock()
        self._closed = Failure(Unavailable, text)
        self._joinable.clear()

    def _on_invalid_argument(self, batch: Batch, detail: str) -> Failure | None:
        """Return the error for a single call's INVALID_ARGUMENT, or None to retry without the cursor.

        The demand is at fault, or our cursor: a server does not know it after an older backup was restored.
        """
        (flight,) = batch.flights
        if flight.position.cursor and not flight.refused_cursor:
            flight.refused_cursor = flight.position.cursor
            return None
        return Failure(InvalidRequest, detail)

    def _check_answer(self, flight: Flight, response: pb.VerifyResponse, in_batch: bool) -> Answer | Failure | None:
        """Return the outcome of a flight, after caching it. None: the key must be sent again.

        A batch leaves an item undecided if the answer has no room for it, or if the item has the wrong form.
        """
        if response.code == pb.VERIFY_CODE_UNSPECIFIED and in_batch:
            return None
        if response.any_project and self._settings.project_id is None:
            return Failure(NotAllowed, PROJECT_REQUIRED)
        sent_at = flight.sent_at or 0
        try:
            answer = read_answer(response, flight.request.key, flight.demand, sent_at)
        except ValueError:
            return _bad_answer()
        if self._cache.contradicts(answer, flight.position):
            return _bad_answer()
        if answer.record is not None and not self._settings.accepts(answer.record.project_id):
            answer = answer._replace(code=Code.NOT_FOUND, record=None)
        if flight.refused_cursor:
            self._cache.drop_cursor(flight.refused_cursor)
        self._cache.store(flight.request.key, answer, flight.position)
        return answer

    def _settle(self, batch: Batch, outcomes: list[Any]) -> Batch | None:
        with self._lock:
            # Backwards, because retried flights go to the front of the queue and keep their order.
            for flight, outcome in zip(reversed(batch.flights), reversed(outcomes), strict=True):
                if outcome is None and self._closed is None:
                    flight.max_batch, flight.sent_at = (len(batch.flights) + 1) // 2, None
                    self._queue.appendleft(flight)
                elif self._joinable.get(flight.request.key) is flight:
                    del self._joinable[flight.request.key]
            self._calls_in_flight -= 1
            following = self._next_batch()
        for flight, outcome in zip(batch.flights, outcomes, strict=True):
            if outcome is not None:
                _finish(flight, outcome)
        return following

    def _request(self, key: str, demand: Demand) -> pb.VerifyRequest:
        # The request does not name the caller's projects, so that the answer serves other callers too.
        try:
            return pb.VerifyRequest(
                key=key,
                project_id=self._settings.only_project,
                environment_id=demand.environment_id,
                required_scopes=demand.required_scopes,
                client_ip=demand.client_ip,
            )
        except UnicodeError:
            raise InvalidRequest("a required scope, the address or the environment is not valid Unicode") from None

    def _next_batch(self) -> Batch | None:
        if self._calls_in_flight == MAX_CALLS_IN_FLIGHT or self._closed is not None:
            return None
        now = self._clock()
        flights: list[Flight] = []
        size = 0
        while self._queue:
            flight = self._queue[0]
            if now >= flight.deadline:  # all callers have given up
                self._queue.popleft()
                if self._joinable.get(flight.request.key) is flight:
                    del self._joinable[flight.request.key]
                continue
            position = self._cache.position(flight.request.key)
            flight.request.ClearField("consistency")
            if position.cursor and not flight.refused_cursor:
                flight.request.consistency.at_least_as_fresh = position.cursor
            size += flight.request.ByteSize()
            # A retried flight shares a batch only with flights of the same `most`: from a batch of the same size.
            if flights and (
                len(flights) >= flight.max_batch or flight.max_batch != flights[0].max_batch or size > MAX_BATCH_BYTES
            ):
                break
            flights.append(self._queue.popleft())
            flight.sent_at = now
            flight.position = position._replace(cursor="", revision=0) if flight.refused_cursor else position
        if not flights:
            return None
        self._calls_in_flight += 1
        if len(flights) == 1:
            return Batch(flights, flights[0].request)
        return Batch(flights, pb.BatchVerifyRequest(requests=[flight.request for flight in flights]))


def _bad_answer() -> Failure:
    return Failure(Unavailable, "this client version does not understand the server's answer")


def _finish(flight: Flight, outcome: Answer | Failure) -> None:
    if not flight.future.done():
        flight.future.set_result(outcome)
