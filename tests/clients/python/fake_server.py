"""A fake server of Verify, BatchVerify and Watch. A test sets its answers, and it records its requests."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer, add_ApiKeyServiceServicer_to_server

PATIENCE = 60
"""Seconds that anything may take before a test fails."""

OWN_KEY = "tmb_own"
NONSENSE = "nonsense"
"""A client_ip that the server refuses."""

NOW = 1_900_000_000
"""The server's clock, in seconds. It stands still."""


_GIVES: dict[Any, dict[str, Any]] = {
    pb.VERIFY_CODE_ENVIRONMENT_MISMATCH: {"environment_id": "another"},
    pb.VERIFY_CODE_IP_NOT_ALLOWED: {"allowed_cidrs": ["203.0.113.0/24"]},
    pb.VERIFY_CODE_INSUFFICIENT_SCOPE: {"scopes": ["another:scope"]},
}


def key_of(number: int, fill: str = "0") -> str:
    """Return a key whose id contains the number."""
    return keyformat.build("tmb", f"{number:016d}", fill * keyformat.SECRET_LENGTH)


def id_of(key: str) -> str:
    """Return a key's id."""
    return keyformat.parse(key).id


PROBE = key_of(10**15)
"""A key that is unknown, so never cached."""


class FakeStream:
    """An open stream."""

    def __init__(self, request: pb.WatchRequest) -> None:
        self.request = request
        self.messages: queue.SimpleQueue[pb.WatchResponse | grpc.StatusCode] = queue.SimpleQueue()


class FakeServer(ApiKeyServiceServicer):
    """The server. Unknown keys are NOT_FOUND. A stream starts with a heartbeat unless ``greets`` is unset."""

    def __init__(self) -> None:
        self.answers: dict[str, pb.VerifyResponse] = {}
        self.calls: list[pb.VerifyRequest | pb.BatchVerifyRequest] = []
        self.metadata: dict[str, Any] = {}
        self.failures: list[grpc.StatusCode] = []
        self.refuses_calls: grpc.StatusCode | None = None
        self.detail = "as the test has it"
        self.unknown_cursor = ""
        self.revision = 10
        self.greets = True
        self.streams: list[FakeStream] = []
        self.refuses_streams: grpc.StatusCode | None = None
        self._probed = ""
        self._under_way = self._most = 0
        self._held: dict[str, threading.Event] = {}
        self._waiting: list[str] = []
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(40))
        add_ApiKeyServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def target(self) -> str:
        """The address of the server."""
        return f"127.0.0.1:{self.port}"

    @property
    def cursor(self) -> str:
        """The newest cursor of the log."""
        return f"cursor-{self.revision}"

    def knows(self, number: int, **fields: Any) -> str:
        """Add a key and return its text. The fields are those of Verify's answer.

        A ``code`` that depends on the demand comes with a record that gives it, unless the demand is empty.
        """
        key = key_of(number)
        fields = {**_GIVES.get(fields.get("code"), {}), **fields}
        answer = pb.VerifyResponse(
            valid=True, code=pb.VERIFY_CODE_VALID, key_id=id_of(key), project_id="acme", scopes=["orders:*"]
        )
        answer.check_time.seconds = NOW
        answer.cache_ttl.seconds = 60
        for name, value in fields.items():
            if name == "code":
                answer.code, answer.valid = value, value == pb.VERIFY_CODE_VALID
            elif name in ("expire_time", "grace_expire_time", "cache_ttl"):
                getattr(answer, name).seconds = value
            else:
                answer.ClearField(name)
                answer.MergeFrom(pb.VerifyResponse(**{name: value}))
        self.answers[key] = answer
        return key

    def hold(self, key: str) -> Callable[[], None]:
        """Make calls for a key wait after their decision. Return a function that releases them."""
        gate = self._held[key] = threading.Event()

        def release() -> None:
            self._held.pop(key, None)
            gate.set()

        return release

    def await_held(self, *keys: str) -> None:
        """Return once calls for all of these keys are waiting."""
        self.until(lambda: set(keys) <= set(self._waiting))

    @property
    def most_at_once(self) -> int:
        """Maximum number of calls in flight at a time so far."""
        return self._most

    def until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition on this server's requests is true."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), "it never came to be"

    def send(self, *changed: str, reset: bool = False, age: float | None = None) -> None:
        """Send the newest stream an event of each key, or without keys a heartbeat of this age in seconds."""
        self.until(lambda: bool(self.streams))
        events = []
        for key in changed:
            self.revision += 1
            events.append(event_pb2.KeyEvent(revision=self.revision, key_id=id_of(key)))
        self.revision += not changed
        message = pb.WatchResponse(events=events, cursor=self.cursor, reset=reset)
        if age is not None:
            message.stream_age.FromMicroseconds(int(age * 1_000_000))
        self.streams[-1].messages.put(message)

    def cut(self, status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """End the newest stream, and return once there is another."""
        number = len(self.streams)
        self.streams[-1].messages.put(status)
        if self.refuses_streams is None:
            self.until(lambda: len(self.streams) > number)

    def handled(self, verifier: Any) -> None:
        """Return once a verifier has handled all messages: it then sends the newest cursor."""
        for _ in range(PATIENCE * 1000):
            verifier.verify(PROBE)
            if self._probed == self.cursor:
                return
            self._changed.acquire()
            self._changed.wait(0.001)
            self._changed.release()
        raise AssertionError("it was never handled")

    def handled_by(self, server: Any) -> None:
        """Return once a guarded server's verifier has handled all messages, and has no key to verify again."""
        for _ in range(PATIENCE * 100):
            sessions, cache = server.verifier._sessions, server.verifier._cache  # noqa: SLF001 - nothing else tells
            held = list(sessions._keys.values())  # noqa: SLF001 - likewise
            if cache.cursor == self.cursor and all(one.unconfirmed_since is None for one in held):
                return
            time.sleep(0.01)
        raise AssertionError("it was never handled")

    def stop(self) -> None:
        """Stop the server."""
        for gate in self._held.values():
            gate.set()
        for stream in self.streams:
            stream.messages.put(grpc.StatusCode.UNAVAILABLE)
        self._server.stop(None).wait()

    # The RPCs' names are the protos'.
    def Verify(  # noqa: N802
        self, request: pb.VerifyRequest, context: grpc.ServicerContext
    ) -> pb.VerifyResponse:
        cursor = request.consistency.at_least_as_fresh
        if request.key == PROBE:
            self._probed = cursor
            return pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)
        self._enter(request, context)
        answer = self._answer(request)
        if (cursor and cursor == self.unknown_cursor) or request.client_ip == NONSENSE:
            self._leave()
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.detail)
        self._leave()
        return answer

    def BatchVerify(  # noqa: N802
        self, request: pb.BatchVerifyRequest, context: grpc.ServicerContext
    ) -> pb.BatchVerifyResponse:
        self._enter(request, context)
        responses = [
            pb.VerifyResponse() if one.client_ip == NONSENSE else self._answer(one) for one in request.requests
        ]
        self._leave()
        return pb.BatchVerifyResponse(responses=responses)

    def Watch(  # noqa: N802
        self, request: pb.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchResponse]:
        stream = FakeStream(request)
        if self.greets and self.refuses_streams is None:
            stream.messages.put(pb.WatchResponse(cursor=self.cursor))
        with self._changed:
            self.streams.append(stream)
            self._changed.notify_all()
        if request.start_cursor and request.start_cursor == self.unknown_cursor:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.detail)
        if self.refuses_streams is not None:
            context.abort(self.refuses_streams, self.detail)
        context.add_callback(lambda: stream.messages.put(grpc.StatusCode.CANCELLED))
        while True:
            message = stream.messages.get()
            if isinstance(message, grpc.StatusCode):
                context.abort(message, self.detail)
            yield message

    def _enter(self, request: Any, context: grpc.ServicerContext) -> None:
        with self._changed:
            self.metadata = dict(context.invocation_metadata())
            self.calls.append(type(request).FromString(request.SerializeToString()))
            self._changed.notify_all()
            if self.failures:
                context.abort(self.failures.pop(0), self.detail)
            if self.refuses_calls is not None:
                context.abort(self.refuses_calls, self.detail)
            self._under_way += 1
            self._most = max(self._most, self._under_way)

    def _leave(self) -> None:
        with self._changed:
            self._under_way -= 1

    def _answer(self, request: pb.VerifyRequest) -> pb.VerifyResponse:
        answer = pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND)
        answer.check_time.seconds = NOW
        answer.CopyFrom(self.answers.get(request.key, answer))
        answer.revision = self.revision
        gate = self._held.get(request.key)
        if gate is not None:
            with self._changed:
                self._waiting.append(request.key)
                self._changed.notify_all()
            gate.wait(PATIENCE)
            self._waiting.remove(request.key)
        return answer
