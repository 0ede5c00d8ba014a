"""The event loop that serves: an asyncio loop whose one source of events is gRPC's completion queue.

``grpc.aio`` has a thread of its own wait for that queue, and tell an ordinary loop of each event by a socket: two
switches between threads, three times a call. Here the loop waits for the queue itself. It knows no other files or
sockets: whatever blocks runs on other threads, and these wake the loop by a bell.

What an event calls must only make something runnable, by a future or a task: ``events.glance`` counts on it that who
looks at the database in a turn of the loop stood in its queue before.
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
import structlog
from grpc._cython import cygrpc

from tumbler_server import shares
from tumbler_server.errors import SetupError
from tumbler_server.rpc.headers import Headers

T = TypeVar("T")

_log = structlog.get_logger(__name__)

TURN = 0.001
"""Seconds that a thread may keep the interpreter while the loop waits for it. Callers would feel Python's own 5 ms."""

TURNS = 32
"""What events may make runnable before it has its turn; then the next ones are taken."""

EVENTS = 1_024
"""Events that are taken at a time: those of callers who hang up make nothing runnable, and may be thousands."""

_ALONE = 8
"""Times that an event is taken to have come alone, once one has: to ask for a second one costs a tenth of a call."""

_LAST = 1.0
"""Seconds that what is cancelled at the end has to end."""

_YOUNG = 20_000
"""Objects made, less those freed, until the collector looks at the young ones; Python's own figure is 700."""

_LONGEST = 0.2
"""Seconds that gRPC is waited for at a time. It reckons by a clock that may be set, which so matters no longer."""

_AT_ONCE = 0.0
"""A point in time that is past."""

_PATIENCE = 10.0
"""Seconds to connect to ourselves."""

_BELL = "/bell"

_NOTHING = cygrpc.CompletionType.queue_timeout


class Loop(asyncio.BaseEventLoop):
    """Waits for ``queue``: the tag of each of its events is called with the event."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self  # what BaseEventLoop asks for events
        self.headers = Headers()
        """The size of what the event that is being told came with."""
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
        """For so many times it is not asked whether a second event has come: there was none the last time."""

    def select(self, timeout: float | None) -> tuple[()]:
        """Have the events told to their tags that have come, or that come within so many seconds."""
        poll, ready = self.queue.poll, self._ready  # type: ignore[attr-defined]  # what has its turn next
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
            # Who sends far more headers than is allowed has cost enough, and is to be cut before the next such call.
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
        """Do nothing: they are told as they are taken."""

    def _write_to_self(self) -> None:
        """Wake the loop; for all threads."""
        if not self._rings:
            self._rings = True
            self._bell.start_server_batch((), self._hear)

    def _hear(self, _: Any) -> None:
        self._rings = False


class LoopThread:
    """Runs a loop on a thread of its own until ``close``. Should it end by itself, that thread calls ``failed``."""

    def __init__(self, failed: Callable[[], None] = lambda: None) -> None:
        sys.setswitchinterval(TURN)
        # A call makes dozens of objects that its end frees without the collector; looking for cycles so often is waste.
        gc.set_threshold(_YOUNG, 20, 50)
        self._failed = failed
        self.loop = Loop()
        self.loop.set_exception_handler(_tell)
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop, and return what it returns. For other threads.

        Raises ``RuntimeError`` where the loop ends meanwhile.
        """
        running = asyncio.run_coroutine_threadsafe(work, self.loop)
        while not futures.wait((running,), timeout=_LAST).done:
            if not self._thread.is_alive():
                raise RuntimeError("the event loop ended unexpectedly")
        return running.result()

    def close(self) -> None:
        """Cancel what is still going on there, and end the loop."""
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
    """Return what any thread may ring: a call that is over. To begin nothing on it is done at once, which is an event.

    gRPC has no other way to put something into its queue. The call is one to ourselves, by a server that is gone before
    anything else can come of it. It is served by all that is used of gRPC to serve any call: a version that has that
    otherwise shows here. Raises ``SetupError``.
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
            calling = channel.unary_unary(_BELL).future(_BELL.encode(), timeout=_PATIENCE)
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
            pass  # what was asked for fails first
        server.destroy()
    return bell


def _answer(call: Any, queue: Any) -> None:
    """Give a call its message back."""
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
    """Log what nobody caught by its type: asyncio's own handler would log its text, which could hold a secret."""
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
