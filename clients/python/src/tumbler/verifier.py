"""The verifier for threads."""

import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent import futures
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from tumbler._base import SPARE, BaseVerifier, demand_of
from tumbler._desk import Flight, Sending
from tumbler._gevent import demand_grpc_knows
from tumbler._sessions import Held
from tumbler._stream import LATE
from tumbler.decide import Demand
from tumbler.projects import ProjectId
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from tumbler.verification import Verification

__all__ = ["Verifier"]


class Verifier(BaseVerifier):
    """Verifies presented keys. Caches their records while the server's stream confirms them.

    Create one per process, after any fork, and share it among threads. It follows the stream in threads of its own from
    its construction until ``close``. Under gevent's monkey patch these are greenlets, and gRPC needs
    ``grpc.experimental.gevent.init_gevent()``.
    """

    def _open(self) -> None:
        demand_grpc_knows()
        settings = self._settings
        self._connecting = threading.Lock()
        self._connect()
        self._closing = threading.Event()
        self._listening: Any = None
        self._heard = 0.0
        self._woken = threading.Event()
        self._attending: threading.Thread | None = None
        self._starting = threading.Lock()
        self._renewing: deque[tuple[float, Held, int, Flight]] = deque()
        self._sessions.wake = self._wake
        if settings.watch:
            for work in (self._follow, self._tend):
                threading.Thread(target=work, name=f"tumbler{work.__name__}", daemon=True).start()

    def _connect(self) -> None:
        settings = self._settings
        if settings.credentials is None:
            self._channel = grpc.insecure_channel(settings.target, options=settings.channel_options)
        else:
            self._channel = grpc.secure_channel(settings.target, settings.credentials, settings.channel_options)
        self._stub = ApiKeyServiceStub(self._channel)

    def verify(
        self,
        key: str,
        required_scopes: Iterable[str] = (),
        client_ip: str | None = None,
        environment_id: str | None = None,
        project_id: ProjectId | None = None,
    ) -> Verification:
        """Return whether a presented key may do what is asked, now.

        Args:
            key: The whole text of the key, as presented.
            required_scopes: Scopes that the key must grant, all of them. At most 100, without wildcards.
            client_ip: The address that presented the key. Without it, a key that is bound to networks is denied.
            environment_id: The environment that the key must belong to. Default: any.
            project_id: A project, or several: the key must belong to one of them. This narrows the verifier's own
                ``project_id``, and never widens it.

        Returns:
            The verdict, which is true only when the key may. It takes microseconds if the key is cached, and at most
            ``timeout``.

        Raises:
            Unavailable: The server could not be reached, or the verifier is closed. Nothing was decided.
            NotAllowed: The server refused the verifier's own key, or that key sees all projects and you named none.
            InvalidRequest: A scope, the address, the environment or a project has the wrong form.

        """
        demand = demand_of(required_scopes, client_ip, environment_id, project_id)
        known = self._known(key, demand)
        return known if known is not None else self._ask(key, demand)

    def close(self) -> None:
        """Close the stream and fail all waiting callers. Closing again does nothing."""
        if self._shut():
            self._closing.set()
            self._woken.set()
            with self._connecting:
                self._channel.close()
            if self._listening is not None:
                self._listening.cancel()  # it may be on a replaced channel

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, key: str, demand: Demand) -> Verification:
        until = time.monotonic() + self._settings.timeout
        while True:
            flight, sending = self._desk.join(key, demand, futures.Future)
            if sending is not None and sending.flights == [flight]:
                self._send_here(sending)
            elif sending is not None:
                self._send(sending)
            try:
                outcome = flight.future.result(max(0.0, until - time.monotonic()))
            except futures.TimeoutError:
                raise self._late() from None
            verdict = self._landed(flight, demand, outcome)
            if verdict is not None:
                return verdict

    def _send_here(self, sending: Sending) -> None:
        """Call in the caller's own thread. That costs it a third less than being woken by another thread."""
        try:
            response = self._stub.Verify(sending.request, self._settings.timeout, self._settings.metadata)
        except grpc.RpcError as error:
            following = self._failed(sending, error)
        except BaseException as error:
            # It may be an interrupt, but other callers may wait for the same key.
            following = self._desk.failed(sending, grpc.StatusCode.CANCELLED, type(error).__name__)
            if not isinstance(error, Exception):
                self._send(following)
                raise
        else:
            following = self._desk.answered(sending, response)
        self._send(following)

    def _send(self, sending: Sending | None) -> None:
        """Start a call and return at once. gRPC's thread handles the response."""
        while sending is not None:
            method = self._stub.BatchVerify if sending.is_batch else self._stub.Verify
            try:
                call = method.future(sending.request, self._settings.timeout, self._settings.metadata)
            except Exception as error:  # the channel was closed
                sending = self._desk.failed(sending, grpc.StatusCode.CANCELLED, type(error).__name__)
            else:
                call.add_done_callback(partial(self._back, sending))
                return

    def _back(self, sending: Sending, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            self._send(self._desk.answered(sending, call.result()))
        else:
            self._send(self._failed(sending, call))

    def _failed(self, sending: Sending, error: Any) -> Sending | None:
        status, detail = _status(error)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._suspect()
        return self._desk.failed(sending, status, detail)

    def _suspect(self) -> None:
        """Make new connections for later calls, if it is time. The stream moves to them a little later."""
        with self._connecting:
            if self._suspects():
                ending = threading.Timer(self._settings.timeout + SPARE, self._channel.close)
                ending.daemon = True
                ending.start()
                self._connect()

    def _follow(self) -> None:
        while not self._closing.is_set():
            status, detail = self._listen()
            if self._closing.is_set():
                return
            self._closing.wait(self._stream.ended(status, detail))

    def _listen(self) -> tuple[grpc.StatusCode, str]:
        """Follow the stream until it ends, and return how it ended."""
        self._heard = time.monotonic()
        try:
            self._listening = self._stub.Watch(self._stream.request(), metadata=self._settings.metadata)
            for response in self._listening:
                self._heard = time.monotonic()
                if not self._stream.told(response):
                    self._listening.cancel()
                    return grpc.StatusCode.CANCELLED, LATE
        except grpc.RpcError as error:
            return _status(error)
        except ValueError:
            return grpc.StatusCode.CANCELLED, "the channel is closed"
        return grpc.StatusCode.OK, "the server ended it"

    def _tend(self) -> None:
        """Cancel the stream when it has been silent for too long."""
        left = self._stream.silence
        while not self._closing.wait(left):
            left = self._heard + self._stream.silence - time.monotonic()
            if left <= 0:
                self._suspect()
                if self._listening is not None:
                    self._listening.cancel()
                left = self._stream.silence

    def _wake(self) -> None:
        self._woken.set()
        if self._attending is None:
            with self._starting:
                if self._attending is None:
                    self._attending = threading.Thread(target=self._attend, name="tumbler_attend", daemon=True)
                    self._attending.start()

    def _attend(self) -> None:
        """Verify the keys of open streams again as they become due."""
        while not self._closing.is_set():
            self._woken.wait(self._sessions.pause())
            self._woken.clear()
            for held in self._sessions.due():
                self._renew(held)
            self._collect()

    def _renew(self, held: Held) -> None:
        """Verify a key again. `_collect` handles the answer later, so one slow answer does not delay the other keys."""
        try:
            known = self._known(held.key, held.demand)
            if known is not None:
                self._sessions.settle(held, held.turn, known)
                return
            flight, sending = self._desk.join(held.key, held.demand, futures.Future)
            self._send(sending)
        except Exception as error:
            self._sessions.settle(held, held.turn, error)
            return
        self._renewing.append((time.monotonic() + self._settings.timeout, held, held.turn, flight))
        flight.future.add_done_callback(lambda _: self._woken.set())

    def _collect(self) -> None:
        for _ in range(len(self._renewing)):
            until, held, turn, flight = self._renewing.popleft()
            if flight.future.done():
                try:
                    self._sessions.settle(held, turn, self._landed(flight, held.demand, flight.future.result()))
                except Exception as error:
                    self._sessions.settle(held, turn, error)
            elif time.monotonic() >= until:
                self._sessions.settle(held, turn, self._late())
            else:
                self._renewing.append((until, held, turn, flight))


def _status(error: Any) -> tuple[grpc.StatusCode, str]:
    return error.code() or grpc.StatusCode.UNKNOWN, error.details() or ""
