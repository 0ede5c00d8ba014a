"""The verifier for asyncio."""

import asyncio
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import grpc

from tumbler._base import LINGER, BaseVerifier, demand_of
from tumbler._batcher import Batch
from tumbler._gevent import demand_none
from tumbler._sessions import AdmittedKey
from tumbler._watcher import LATE
from tumbler.decide import Demand
from tumbler.projects import ProjectId
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from tumbler.verification import Verification

__all__ = ["Verifier"]


class Verifier(BaseVerifier):
    """`tumbler.Verifier` for asyncio, with the same options.

    It can be created anywhere. It belongs to the event loop that first uses it: there it connects, and follows the
    stream in a task of its own until ``close``.
    """

    def _open(self) -> None:
        demand_none()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken: asyncio.Event | None = None
        self._sessions.wake = self._wake

    async def verify(
        self,
        key: str,
        required_scopes: Iterable[str] = (),
        client_ip: str | None = None,
        environment_id: str | None = None,
        project_id: ProjectId | None = None,
    ) -> Verification:
        """Return whether a presented key may do what is asked, now. See `tumbler.Verifier.verify`.

        Raises:
            Unavailable: The server could not be reached, or the verifier is closed. Nothing was decided.
            NotAllowed: The server refused the verifier's own key, or that key sees all projects and you named none.
            InvalidRequest: A scope, the address, the environment or a project has the wrong form.
            RuntimeError: The verifier was first used in another event loop.

        """
        demand = demand_of(required_scopes, client_ip, environment_id, project_id)
        known = self._verify_locally(key, demand)
        return known if known is not None else await self._verify_remotely(key, demand)

    async def close(self) -> None:
        """Close the stream and fail all waiting callers. Closing again does nothing."""
        if self._shut():
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._channel is not None:
                await self._channel.close()

    async def __aenter__(self) -> "Verifier":
        self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _connect(self) -> None:
        """Connect and start to follow the stream, on first use: an asyncio channel belongs to the loop that made it."""
        loop = asyncio.get_running_loop()
        if self._loop is loop or self._closed:
            return
        if self._loop is not None:
            raise RuntimeError("a tumbler.aio.Verifier belongs to the event loop in which it was first used")
        self._loop = loop
        self._make_channel()
        if self._settings.watch:
            self._start(self._run_watcher())

    def _make_channel(self) -> None:
        settings = self._settings
        if settings.credentials is None:
            self._channel = grpc.aio.insecure_channel(settings.target, options=settings.channel_options)
        else:
            self._channel = grpc.aio.secure_channel(settings.target, settings.credentials, settings.channel_options)
        self._stub = ApiKeyServiceStub(self._channel)

    def _reconnect(self) -> None:
        """Make new connections for later calls, if it is time. The stream moves to them a little later."""
        old = self._channel
        if old is not None and self._may_reconnect():
            self._make_channel()
            self._start(old.close(self._settings.timeout + LINGER))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify_remotely(self, key: str, demand: Demand) -> Verification:
        self._connect()
        until = time.monotonic() + self._settings.timeout
        while True:
            flight, batch = self._batcher.join(key, demand, asyncio.get_running_loop().create_future)
            if batch is not None:
                # A task of its own: this caller may be cancelled while others wait for the same key.
                self._start(self._send(batch))
            await asyncio.wait({flight.future}, timeout=max(0.0, until - time.monotonic()))
            if not flight.future.done():
                raise self._late()
            verdict = self._verdict_of(flight, demand, flight.future.result())
            if verdict is not None:
                return verdict

    async def _send(self, first: Batch) -> None:
        batch: Batch | None = first
        options = {"timeout": self._settings.timeout, "metadata": self._settings.metadata}
        while batch is not None:
            method = self._stub.Verify if batch.is_single else self._stub.BatchVerify
            try:
                response = await method(batch.request, **options)
            except grpc.RpcError as error:
                status, detail = _status(error)
                if status is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._reconnect()
                batch = self._batcher.failed(batch, status, detail)
            except asyncio.CancelledError:
                self._batcher.failed(batch, grpc.StatusCode.CANCELLED, "the event loop ends")
                raise
            except Exception as error:  # the channel was closed
                batch = self._batcher.failed(batch, grpc.StatusCode.CANCELLED, type(error).__name__)
            else:
                batch = self._batcher.answered(batch, response)

    def _wake(self) -> None:
        if self._closed:
            return
        if self._woken is None:
            self._woken = asyncio.Event()
            self._start(self._run_rechecks(self._woken))
        self._woken.set()

    async def _run_rechecks(self, woken: asyncio.Event) -> None:
        """Verify the keys of open streams again as they become due."""
        loop = asyncio.get_running_loop()
        while True:
            woken.clear()
            for admitted in self._sessions.due():
                self._start(self._recheck(admitted, admitted.turn))
            pause = self._sessions.pause()
            timer = None if pause is None else loop.call_later(pause, woken.set)
            try:
                await woken.wait()
            finally:
                if timer is not None:
                    timer.cancel()

    async def _recheck(self, admitted: AdmittedKey, turn: int) -> None:
        outcome: Verification | Exception
        try:
            known = self._verify_locally(admitted.key, admitted.demand)
            outcome = known if known is not None else await self._verify_remotely(admitted.key, admitted.demand)
        except Exception as error:
            outcome = error
        self._sessions.settle(admitted, turn, outcome)

    async def _run_watcher(self) -> None:
        while True:
            status, detail = await self._follow_stream()
            await asyncio.sleep(self._watcher.stream_ended(status, detail))

    async def _follow_stream(self) -> tuple[grpc.StatusCode, str]:
        """Follow the stream until it ends or is silent for too long, and return how it ended."""
        call = self._stub.Watch(self._watcher.request(), metadata=self._settings.metadata)
        try:
            while True:
                reading = asyncio.ensure_future(call.read())
                reading.add_done_callback(_seen)
                # Not `asyncio.wait_for`: before Python 3.12 it loses a cancellation if a message arrives, or the stream
                # breaks, at the same moment. Then the task would run forever.
                done, _ = await asyncio.wait({reading}, timeout=self._watcher.max_silence)
                if not done:
                    self._reconnect()
                    return grpc.StatusCode.CANCELLED, f"no heartbeat arrived for {self._watcher.max_silence:g} s"
                if reading.cancelled():
                    return grpc.StatusCode.CANCELLED, "its channel was replaced"
                response = reading.result()
                if response is grpc.aio.EOF:
                    return grpc.StatusCode.OK, "the server ended it"
                if not self._watcher.handle(response):
                    return grpc.StatusCode.CANCELLED, LATE
        except grpc.RpcError as error:
            return _status(error)
        finally:
            call.cancel()  # also cancels a pending read


def _seen(reading: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of a read that no one awaits any more, or asyncio would log it."""
    if not reading.cancelled():
        reading.exception()


def _status(error: Any) -> tuple[grpc.StatusCode, str]:
    return error.code() or grpc.StatusCode.UNKNOWN, error.details() or ""
