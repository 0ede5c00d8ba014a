"""The event loop that serves: an asyncio loop whose only source of events is gRPC's completion queue.

``grpc.aio`` waits for that queue on a thread of its own, and wakes an ordinary loop through a socket for each event:
two thread switches, three times a call. This loop waits for the queue itself. It has no other files or sockets:
blocking work runs on other threads, which wake the loop with a bell.

An event's callback must only make something runnable, through a future or a task. ``freshness.glance`` relies on that:
every call that runs in a turn of the loop was in its queue before the turn's look at the database.
"""

import asyncio
import contextlib
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, TypeVar

import grpc
from grpc._cython import cygrpc

from tumbler_server import logs, shares
from tumbler_server.errors import SetupError
from tumbler_server.rpc.headers import Headers

T = TypeVar("T")

_log = logs.get_logger(__name__)

TURN = 0.001
"""Seconds that a thread may keep the interpreter while the loop waits for it. Callers would notice Python's 5 ms."""

TURNS = 32
"""Callbacks that events may make runnable before the loop runs them. Then it takes the next events."""

EVENTS = 1_024
"""Maximum events per turn. Those of callers that hang up make nothing runnable, and there may be thousands."""

_ALONE = 8
"""Events to take singly after a turn found no second one: checking for a second one costs a tenth of a call."""

_LAST = 1.0
"""Seconds that cancelled tasks have to end at shutdown."""

_YOUNG = 20_000
"""Objects allocated, less those freed, before the collector checks the youngest ones; Python's default is 700."""

_LONGEST = 0.2
"""Maximum seconds of one wait for gRPC. gRPC uses the wall clock, which may be set; this bounds the effect."""

_AT_ONCE = 0.0
"""A deadline in the past."""

_PATIENCE = 10.0
"""Seconds to connect to ourselves."""

_BELL = "/bell"

_NOTHING = cygrpc.CompletionType.queue_timeout


class Loop(asyncio.BaseEventLoop):
    """Waits for ``queue``. The tag of each event is a callback, which is called with the event."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self  # BaseEventLoop gets events from its selector
        self.headers = Headers()
        """Measures the headers of the event that is being handled."""
        try:
            self.queue = cygrpc.CompletionQueue()
            self._bell = _make_bell(self.queue)
        except SetupError:
            self.close()
            raise
        except (AttributeError, TypeError, ValueError, grpc.RpcError):
            self.close()
            raise SetupError(
                f"the server cannot work with grpcio {grpc.__version__}: install an earlier version"
            ) from None
        self._rings = False
        self._alone = 0
        """Number of checks for a second event to skip, because there was none last time."""

    def select(self, timeout: float | None) -> tuple[()]:
        """Wait up to ``timeout`` seconds for events, and call the tags of those that arrive."""
        poll, ready = self.queue.poll, self._ready  # type: ignore[attr-defined]  # the callbacks of the next turn
        if timeout is None or timeout > _LONGEST:
            timeout = _LONGEST
        headers = self.headers
        headers.size = 0
        event = poll(time.time() + timeout if timeout > 0 else _AT_ONCE)
        full, last = len(ready) + TURNS, EVENTS
        while event.completion_type != _NOTHING:
            try:
                event.tag(event)
            except Exception as failure:
                self.call_exception_handler({"message": "an event of gRPC's", "exception": failure})
            last -= 1
            # A call with far too many headers is expensive. Let it be cut before the next one arrives.
            if not last or len(ready) >= full or headers.size > shares.ABSURD:
                break
            headers.size = 0
            if self._alone:
                self._alone -= 1
                break
            event = poll(_AT_ONCE)
        else:
            if last == EVENTS - 1:
                self._alone = _ALONE
        return ()

    def _process_events(self, _: tuple[()]) -> None:
        """Do nothing: ``select`` handles events as it takes them."""

    def _write_to_self(self) -> None:
        """Wake the loop. Any thread may call this."""
        if not self._rings:
            self._rings = True
            self._bell.start_server_batch((), self._hear)

    def _hear(self, _: Any) -> None:
        self._rings = False


class LoopThread:
    """Runs a loop on its own thread until ``close``. If the loop ends by itself, that thread calls ``failed``."""

    def __init__(self, failed: Callable[[], None] = lambda: None) -> None:
        sys.setswitchinterval(TURN)
        # A call creates dozens of objects that need no collector, so frequent searches for cycles are wasteful.
        gc.set_threshold(_YOUNG, 20, 50)
        self._failed = failed
        self.loop = Loop()
        self.loop.set_exception_handler(_tell)
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop from another thread, and return its result.

        Raises ``RuntimeError`` if the loop ends meanwhile.
        """
        running = asyncio.run_coroutine_threadsafe(work, self.loop)
        while not futures.wait((running,), timeout=_LAST).done:
            if not self._thread.is_alive():
                raise RuntimeError("the event loop ended unexpectedly")
        return running.result()

    def close(self) -> None:
        """Cancel all tasks, and end the loop."""
        if self._thread.is_alive():
            self.run(_cancel_others())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.headers.begin()
        try:
            self.loop.run_forever()
        except BaseException as failure:
            _log.critical("the event loop ended unexpectedly", error=type(failure).__name__)
            self._failed()
        finally:
            self.loop.headers.end()


def _make_bell(queue: Any) -> Any:
    """Return the bell: a finished call. Any thread rings it with an empty batch of operations, which completes at once.

    That puts an event into gRPC's queue; gRPC has no other way to do so. The call is made to ourselves, through a
    server that is then destroyed. It uses every part of gRPC that serving a call uses, so a version of gRPC that has
    changed one of them fails here. Raises ``SetupError``.
    """
    server = cygrpc.Server((("grpc.so_reuseport", 0),), False)
    server.register_completion_queue(queue)
    server.register_method(_BELL)
    port = server.add_http2_port(b"127.0.0.1:0")
    server.start()
    bell = None
    try:
        server.request_call(queue, queue, None)
        server.request_registered_call(queue, queue, _BELL, None)
        options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            ringing: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_BELL)
            calling = ringing.future(_BELL.encode(), timeout=_PATIENCE)
            event = _next(queue)
            _answer(event.call, queue)
            if calling.result() != _BELL.encode():
                raise ValueError
        bell = event.call
    finally:
        server.shutdown(queue, server)
        if bell is None:
            server.cancel_all_calls()
        while _next(queue).tag is not server:
            pass  # the requests for calls fail first
        server.destroy()
    return bell


def _answer(call: Any, queue: Any) -> None:
    """Echo a call's message."""
    message, closing = cygrpc.ReceiveMessageOperation(0), cygrpc.ReceiveCloseOnServerOperation(0)
    answer = (
        cygrpc.SendInitialMetadataOperation((), 0),
        cygrpc.SendStatusFromServerOperation((), 0, "", 0),
    )
    call.start_server_batch((message,), None)
    _next(queue)
    call.start_server_batch((*answer, cygrpc.SendMessageOperation(message.message(), 0), closing), None)
    _next(queue)
    if closing.cancelled():
        raise ValueError


def _next(queue: Any) -> Any:
    event = queue.poll(time.time() + _PATIENCE)
    if event.completion_type == _NOTHING:
        raise SetupError("the server cannot connect to itself on 127.0.0.1: is there no loopback interface?")
    return event


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an unhandled exception by its type. asyncio's own handler would log its text, which could hold a secret."""
    failure = context.get("exception")
    places = traceback.extract_tb(failure.__traceback__) if failure else ()
    with contextlib.suppress(Exception):  # a log that cannot be written must not change what happens
        _log.error(
            "a task on the event loop failed",
            error=type(failure).__name__,
            places=[f"{place.filename}:{place.lineno} {place.name}" for place in places][-8:],
        )


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_LAST)
