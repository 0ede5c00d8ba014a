"""Assigns keys to calls: callers with the same key share a call, few calls run at a time, and other keys are batched.

No I/O. The caller sends what is returned, and hands in what comes back. Thread-safe.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grpc

from tumbler._memory import Answer, Clock, Memory, Moment, read_answer
from tumbler._settings import SECOND, Settings
from tumbler.decide import Code, Demand
from tumbler.errors import InvalidRequest, NotAllowed, TumblerError, Unavailable
from tumbler.projects import UNSAID
from tumbler.v1 import api_key_service_pb2 as pb

MOST_CALLS = 4
"""Maximum number of calls in flight."""

MOST_KEYS = 500
"""Maximum number of keys in a call."""

MOST_BYTES = 256 * 1024
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
        self.sent: int | None = None
        self.since = Moment(0, 0, "")
        self.most = MOST_KEYS
        """Maximum number of keys in its next call. After a retry: half of the keys in its last call, rounded up."""
        self.cursor_in_doubt = ""


@dataclass(frozen=True, slots=True, repr=False)  # repr() would show keys
class Sending:
    """The next call to send: a Verify, or a BatchVerify of several flights."""

    flights: list[Flight]
    request: pb.VerifyRequest | pb.BatchVerifyRequest

    @property
    def is_batch(self) -> bool:
        """Whether it is a BatchVerify."""
        return isinstance(self.request, pb.BatchVerifyRequest)


class Desk:
    """Hands out flights and calls. The caller must return every call, with ``answered`` or ``failed``."""

    def __init__(self, settings: Settings, memory: Memory, clock: Clock) -> None:
        self._timeout = int(settings.timeout * SECOND)
        self._settings = settings
        self._memory = memory
        self._clock = clock
        self._flights: dict[str, Flight] = {}
        self._queue: deque[Flight] = deque()
        self._under_way = 0
        self._closed: Failure | None = None
        self._lock = threading.Lock()

    def join(self, key: str, demand: Demand, new_future: Callable[[], Settled]) -> tuple[Flight, Sending | None]:
        """Return the flight that will bring the key's answer, and the call to send now, if any.

        Raises:
            Unavailable: The desk is closed.
            InvalidRequest: The demand cannot be encoded.

        """
        deadline = self._clock() + self._timeout
        with self._lock:
            if self._closed is not None:
                raise self._closed.kind(self._closed.text)
            flight = self._flights.get(key)
            if flight is not None and (flight.sent is None or self._memory.shareable(flight.since)):
                flight.deadline = deadline
                return flight, None
            flight = self._flights[key] = Flight(self._request(key, demand), demand, new_future(), deadline)
            self._queue.append(flight)
            return flight, self._next()

    def answered(self, sending: Sending, response: Any) -> Sending | None:
        """Settle the flights of a call that succeeded, and return the call to send next."""
        answers = list(response.responses) if sending.is_batch else [response]
        if len(answers) != len(sending.flights):
            return self._settle(sending, [_odd()] * len(sending.flights))
        pairs = zip(sending.flights, answers, strict=True)
        return self._settle(sending, [self._read(*pair, sending.is_batch) for pair in pairs])

    def failed(self, sending: Sending, status: grpc.StatusCode, detail: str) -> Sending | None:
        """Settle or requeue the flights of a call that failed, and return the call to send next."""
        outcome: Failure | None
        if status in _REFUSED:
            outcome = Failure(NotAllowed, f"the server refused the verifier's own key: {status.name}: {detail}")
        elif sending.is_batch and status not in _UNREACHED:
            outcome = None  # one of its keys may be at fault, or their number
        elif status is grpc.StatusCode.INVALID_ARGUMENT:
            outcome = self._blamed(sending, detail)
        else:
            outcome = Failure(Unavailable, f"the call to the server failed: {status.name}: {detail}")
        return self._settle(sending, [outcome] * len(sending.flights))

    def close(self, text: str) -> None:
        """Fail all waiting callers and refuse new ones."""
        with self._lock:
            self._closed = Failure(Unavailable, text)
            flights, self._flights = list(self._flights.values()), {}
            self._queue.clear()
        for flight in flights:
            _finish(flight, self._closed)

    def abandon(self, text: str) -> None:
        """Close, in a forked process. The threads that wait or hold the lock do not exist here."""
        self._lock = threading.Lock()
        self._closed = Failure(Unavailable, text)
        self._flights.clear()

    def _blamed(self, sending: Sending, detail: str) -> Failure | None:
        """Return the error for a single call's INVALID_ARGUMENT, or None to retry without the cursor.

        The demand is at fault, or our cursor: a server does not know it after an older backup was restored.
        """
        (flight,) = sending.flights
        if flight.since.cursor and not flight.cursor_in_doubt:
            flight.cursor_in_doubt = flight.since.cursor
            return None
        return Failure(InvalidRequest, detail)

    def _read(self, flight: Flight, response: pb.VerifyResponse, in_batch: bool) -> Answer | Failure | None:
        """Return the outcome of a flight, after caching it. None: the key must be sent again.

        A batch leaves an item undecided if the answer has no room for it, or if the item has the wrong form.
        """
        if response.code == pb.VERIFY_CODE_UNSPECIFIED and in_batch:
            return None
        if response.any_project and self._settings.project_id is None:
            return Failure(NotAllowed, UNSAID)
        sent = flight.sent or 0
        try:
            answer = read_answer(response, flight.request.key, sent)
        except (ValueError, OverflowError):
            return _odd()
        if answer.record is not None and not self._settings.accepts(answer.record.project_id):
            answer = answer._replace(code=Code.NOT_FOUND, record=None)
        if flight.cursor_in_doubt:
            self._memory.lose_cursor(flight.cursor_in_doubt)
        self._memory.remember(flight.request.key, answer, sent, flight.since)
        return answer

    def _settle(self, sending: Sending, outcomes: list[Any]) -> Sending | None:
        with self._lock:
            # Backwards, because retried flights go to the front of the queue and keep their order.
            for flight, outcome in zip(reversed(sending.flights), reversed(outcomes), strict=True):
                if outcome is None and self._closed is None:
                    flight.most, flight.sent = (len(sending.flights) + 1) // 2, None
                    self._queue.appendleft(flight)
                elif self._flights.get(flight.request.key) is flight:
                    del self._flights[flight.request.key]
            self._under_way -= 1
            following = self._next()
        for flight, outcome in zip(sending.flights, outcomes, strict=True):
            if outcome is not None:
                _finish(flight, outcome)
        return following

    def _request(self, key: str, demand: Demand) -> pb.VerifyRequest:
        # The request does not name the caller's projects, so that the answer serves other callers too.
        try:
            return pb.VerifyRequest(
                key=key,
                project_id=self._settings.project,
                environment_id=demand.environment_id,
                required_scopes=demand.required_scopes,
                client_ip=demand.client_ip,
            )
        except UnicodeError:
            raise InvalidRequest("a required scope, the address or the environment is not valid Unicode") from None

    def _next(self) -> Sending | None:
        if self._under_way == MOST_CALLS or self._closed is not None:
            return None
        now, since = self._clock(), self._memory.moment()
        flights: list[Flight] = []
        size = 0
        while self._queue:
            flight = self._queue[0]
            if now >= flight.deadline:  # all callers have given up
                self._queue.popleft()
                if self._flights.get(flight.request.key) is flight:
                    del self._flights[flight.request.key]
                continue
            flight.request.ClearField("consistency")
            if since.cursor and not flight.cursor_in_doubt:
                flight.request.consistency.at_least_as_fresh = since.cursor
            size += flight.request.ByteSize()
            # A retried flight shares a batch only with flights of the same `most`: from a batch of the same size.
            if flights and (len(flights) >= flight.most or flight.most != flights[0].most or size > MOST_BYTES):
                break
            flights.append(self._queue.popleft())
            flight.sent, flight.since = now, since
        if not flights:
            return None
        self._under_way += 1
        if len(flights) == 1:
            return Sending(flights, flights[0].request)
        return Sending(flights, pb.BatchVerifyRequest(requests=[flight.request for flight in flights]))


def _odd() -> Failure:
    return Failure(Unavailable, "this client version does not understand the server's answer")


def _finish(flight: Flight, outcome: Answer | Failure) -> None:
    if not flight.future.done():
        flight.future.set_result(outcome)
