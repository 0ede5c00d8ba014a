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

from tumbler._base import LINGER, BaseVerifier, demand_of
from tumbler._batcher import Batch, Flight
from tumbler._gevent import demand_grpc_knows
from tumbler._sessions import AdmittedKey
from tumbler._watcher import LATE
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
        self._stream_call: Any = None
        self._last_message_at = 0.0
        self._woken = threading.Event()
        self._recheck_thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._rechecking: deque[tuple[float, AdmittedKey, int, Flight]] = deque()
        self._sessions.wake = self._wake
        if settings.watch:
            for work in (self._run_watcher, self._watchdog):
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
        known = self._verify_locally(key, demand)
        return known if known is not None else self._verify_remotely(key, demand)

    def close(self) -> None:
        """Close the stream and fail all waiting callers. Closing again does nothing."""
        if self._shut():
            self._closing.set()
            self._woken.set()
            with self._connecting:
                self._channel.close()
            if self._stream_call is not None:
                self._stream_call.cancel()  # it may be on a replaced channel

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _verify_remotely(self, key: str, demand: Demand) -> Verification:
        until = time.monotonic() + self._settings.timeout
        while True:
            flight, batch = self._batcher.join(key, demand, futures.Future)
            if batch is not None and batch.flights == [flight]:
                self._send_here(batch)
            elif batch is not None:
                self._send(batch)
            try:
                outcome = flight.future.result(max(0.0, until - time.monotonic()))
            except futures.TimeoutError:
                raise self._late() from None
            verdict = self._verdict_of(flight, demand, outcome)
            if verdict is not None:
                return verdict

    def _send_here(self, batch: Batch) -> None:
        """Call in the caller's own thread. That costs it a third less than being woken by another thread."""
        try:
            response = self._stub.Verify(batch.request, self._settings.timeout, self._settings.metadata)
        except grpc.RpcError as error:
            following = self._failed(batch, error)
        except BaseException as error:
            # It may be an interrupt, but other callers may wait for the same key.
            following = self._batcher.failed(batch, grpc.StatusCode.CANCELLED, type(error).__name__)
            if not isinstance(error, Exception):
                self._send(following)
                raise
        else:
            following = self._batcher.answered(batch, response)
        self._send(following)

    def _send(self, batch: Batch | None) -> None:
        """Start a call and return at once. gRPC's thread handles the response."""
        while batch is not None:
            method = self._stub.Verify if batch.is_single else self._stub.BatchVerify
            try:
                call = method.future(batch.request, self._settings.timeout, self._settings.metadata)
            except Exception as error:  # the channel was closed
                batch = self._batcher.failed(batch, grpc.StatusCode.CANCELLED, type(error).__name__)
            else:
                call.add_done_callback(partial(self._back, batch))
                return

    def _back(self, batch: Batch, call: Any) -> None:
        if call.code() is grpc.StatusCode.OK:
            self._send(self._batcher.answered(batch, call.result()))
        else:
            self._send(self._failed(batch, call))

    def _failed(self, batch: Batch, error: Any) -> Batch | None:
        status, detail = _status(error)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._reconnect()
        return self._batcher.failed(batch, status, detail)

    def _reconnect(self) -> None:
        """Make new connections for later calls, if it is time. The stream moves to them a little later."""
        with self._connecting:
            if self._may_reconnect():
                ending = threading.Timer(self._settings.timeout + LINGER, self._channel.close)
                ending.daemon = True
                try:
                    ending.start()
                except RuntimeError:  # there are no more threads; the calls that failed must still be settled
                    return
                self._connect()

    def _run_watcher(self) -> None:
        while not self._closing.is_set():
            status, detail = self._follow_stream()
            if self._closing.is_set():
                return
            self._closing.wait(self._watcher.stream_ended(status, detail))

    def _follow_stream(self) -> tuple[grpc.StatusCode, str]:
        """Follow the stream until it ends, and return how it ended."""
        self._last_message_at = time.monotonic()
        try:
            self._stream_call = self._stub.Watch(self._watcher.request(), metadata=self._settings.metadata)
            for response in self._stream_call:
                self._last_message_at = time.monotonic()
                if not self._watcher.handle(response):
                    self._stream_call.cancel()
                    return grpc.StatusCode.CANCELLED, LATE
        except grpc.RpcError as error:
            return _status(error)
        except ValueError:
            return grpc.StatusCode.CANCELLED, "the channel is closed"
        return grpc.StatusCode.OK, "the server ended it"

    def _watchdog(self) -> None:
        """Cancel the stream when it has been silent for too long."""
        left = self._watcher.max_silence
        while not self._closing.wait(left):
            left = self._last_message_at + self._watcher.max_silence - time.monotonic()
            if left <= 0:
                self._reconnect()
                if self._stream_call is not None:
                    self._stream_call.cancel()
                left = self._watcher.max_silence

    def _wake(self) -> None:
        self._woken.set()
        if self._recheck_thread is None:
            with self._starting:
                if self._recheck_thread is None:
                    thread = threading.Thread(target=self._run_rechecks, name="tumbler_recheck", daemon=True)
                    thread.start()  # raises RuntimeError if there are no more threads; the next call tries again
                    self._recheck_thread = thread

    def _run_rechecks(self) -> None:
        """Verify the keys of open streams again as they become due."""
        while not self._closing.is_set():
            self._woken.wait(self._sessions.pause())
            self._woken.clear()
            for admitted in self._sessions.due():
                self._recheck(admitted)
            self._collect_rechecks()

    def _recheck(self, admitted: AdmittedKey) -> None:
        """Verify a key again. `_collect_rechecks` handles the answer later, so no slow answer delays the others."""
        try:
            known = self._verify_locally(admitted.key, admitted.demand)
            if known is not None:
                self._sessions.settle(admitted, admitted.turn, known)
                return
            flight, batch = self._batcher.join(admitted.key, admitted.demand, futures.Future)
            self._send(batch)
        except Exception as error:
            self._sessions.settle(admitted, admitted.turn, error)
            return
        self._rechecking.append((time.monotonic() + self._settings.timeout, admitted, admitted.turn, flight))
        flight.future.add_done_callback(lambda _: self._woken.set())

    def _collect_rechecks(self) -> None:
        for _ in range(len(self._rechecking)):
            until, admitted, turn, flight = self._rechecking.popleft()
            if flight.future.done():
                try:
                    self._sessions.settle(
                        admitted, turn, self._verdict_of(flight, admitted.demand, flight.future.result())
                    )
                except Exception as error:
                    self._sessions.settle(admitted, turn, error)
            elif time.monotonic() >= until:
                self._sessions.settle(admitted, turn, self._late())
            else:
                self._rechecking.append((until, admitted, turn, flight))


def _status(error: Any) -> tuple[grpc.StatusCode, str]:
    return error.code() or grpc.StatusCode.UNKNOWN, error.details() or ""
