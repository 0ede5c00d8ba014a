"""Serving accepted calls, over real sockets, by handlers of each kind."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import grpc
import pytest
import structlog.testing
from grpc._cython import cygrpc

from tests.unit.test_accepting import serving
from tests.unit.test_lanes import PATIENCE
from tumbler_server import shares
from tumbler_server.limits import Limit
from tumbler_server.rpc import status
from tumbler_server.rpc.accepting import FEW
from tumbler_server.rpc.exchange import Handler
from tumbler_server.rpc.serving import PARTINGS, Serving

UNARY, STREAM = "/tests.Service/Unary", "/tests.Service/Stream"


class Serves(Handler):
    """A handler that runs a test's function, for unary and streaming methods."""

    def __init__(self, path: str, work: Callable[[Any], Any]) -> None:
        self.response_streaming = path == STREAM
        self.stream_unary = self.stream_stream = self._serve
        self._work = work

    async def _serve(self, _: object, context: Any) -> Any:
        return await self._work(context)


class Service:
    """Serves all calls with a test's function."""

    paths: ClassVar[Mapping[str, int]] = {UNARY: FEW, STREAM: FEW}

    def __init__(self) -> None:
        self.work: Callable[[Any], Any]
        self.ended = threading.Event()
        """Set when a call was cancelled."""

    def service(self, details: Any) -> Handler:
        return Serves(details.method, self.work)

    async def wait(self, context: Any) -> bytes:
        """Receive the message, and wait forever."""
        await context.read()
        return await self.wait_at_once(context)

    async def wait_at_once(self, _: Any) -> bytes:
        """Wait forever, without receiving the message."""
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            self.ended.set()
            raise
        return b""


class Stuck:
    """A gRPC call whose operations complete only when it is cancelled."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._tags: list[Callable[[Any], None]] = []
        self.cancelled = asyncio.Event()

    def start_server_batch(self, _: Any, tag: Callable[[Any], None]) -> Any:
        self._tags.append(tag)
        return cygrpc.CallError.ok

    def cancel(self) -> None:
        self.cancelled.set()
        while self._tags:
            self._loop.call_soon(self._tags.pop(), SimpleNamespace(success=False))

    def event(self) -> Any:
        """Return the event of the call's arrival."""
        return SimpleNamespace(call=self, call_details=None, invocation_metadata=())


@pytest.fixture
def serves() -> Iterator[tuple[Service, grpc.Channel]]:
    """Yield a service and a channel to it."""
    service = Service()
    with serving(service) as (_, _, channel):
        yield service, channel


@pytest.mark.parametrize("path", [UNARY, STREAM])
@pytest.mark.parametrize("wait", ["wait", "wait_at_once"])
@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_the_caller_goes_away(serves: tuple[Service, grpc.Channel], path: str, wait: str, how: str) -> None:
    """Whatever a call waits for, it is cancelled when its caller goes away or its deadline passes."""
    service, channel = serves
    service.work = getattr(service, wait)
    call = channel.stream_stream(path)(iter([b"1"]), timeout=0.2 if how == "deadline" else PATIENCE)
    if how == "cancelled":
        time.sleep(0.1)
        call.cancel()
    assert service.ended.wait(PATIENCE)


def test_the_deadline_is_known(serves: tuple[Service, grpc.Channel]) -> None:
    """A handler can read its caller's deadline, or that there is none."""
    service, channel = serves
    known: list[float | None] = []

    async def look(context: Any) -> bytes:
        known.append(context.time_remaining())
        return b""

    service.work = look
    channel.unary_unary(UNARY)(b"", timeout=50)
    channel.unary_unary(UNARY)(b"")
    assert known[0] is not None
    assert 0 < known[0] <= 51
    assert known[1] is None


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_handler_that_fails(serves: tuple[Service, grpc.Channel], path: str) -> None:
    """An exception becomes INTERNAL with a fixed text, because its own could contain a secret; its type is logged."""
    service, channel = serves

    async def fail(_: Any) -> bytes:
        raise ValueError("tmb_a_secret")

    service.work = fail
    with structlog.testing.capture_logs() as logs:
        call = channel.stream_stream(path)(iter([b""]), timeout=PATIENCE)
        assert (call.code(), call.details()) == (grpc.StatusCode.INTERNAL, status.INTERNAL_TEXT)
    assert [(log["method"], log["error"]) for log in logs] == [(path, "ValueError")]
    assert "secret" not in str(logs)


def test_an_unknown_method_fails(serves: tuple[Service, grpc.Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    """If finding a call's handler raises, the call gets INTERNAL, and the next call is served."""
    service, channel = serves
    with monkeypatch.context() as patched:
        patched.setattr(service, "service", lambda _: 1 / 0)
        call = channel.unary_unary(UNARY).future(b"", timeout=PATIENCE)
        assert call.code() is grpc.StatusCode.INTERNAL

    async def answer(context: Any) -> bytes:
        return bytes(await context.read())

    service.work = answer
    assert channel.unary_unary(UNARY)(b"here", timeout=PATIENCE) == b"here"


def test_a_stream_that_is_cut(serves: tuple[Service, grpc.Channel]) -> None:
    """A call that is cut ends for its caller without an answer, and the connection serves the next one."""
    service, channel = serves

    async def cut(context: Any) -> bytes:
        context.cut()
        return await service.wait_at_once(context)

    service.work = cut
    call = channel.unary_unary(UNARY).future(b"", timeout=PATIENCE)
    assert call.code() is grpc.StatusCode.CANCELLED
    assert service.ended.wait(PATIENCE)


def test_a_stream(serves: tuple[Service, grpc.Channel]) -> None:
    """A stream sends its headers, then its messages in order, then its trailers."""
    service, channel = serves

    async def tell(context: Any) -> None:
        await context.send_initial_metadata((("x-first", "1"),))
        async for number in numbers():
            await context.write(b"%d" % number)
        context.set_trailing_metadata((("x-last", "2"),))

    async def numbers() -> Any:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    service.work = tell
    call = channel.unary_stream(STREAM)(b"", timeout=PATIENCE)
    assert ("x-first", "1") in call.initial_metadata()
    assert [*call] == [b"0", b"1", b"2"]
    assert ("x-last", "2") in call.trailing_metadata()


async def _ends(_: Any) -> None:
    """Serve a stream without messages."""


async def _begins(context: Any) -> None:
    """Serve a stream with headers and no messages."""
    await context.send_initial_metadata(())


async def _refuses(context: Any) -> bytes:
    """Refuse a call."""
    return bytes(await context.abort(grpc.StatusCode.NOT_FOUND, "nothing"))


@pytest.mark.parametrize(
    ("path", "work"),
    [("/no/method", None), (STREAM, _ends), (STREAM, _begins), (UNARY, _refuses)],
    ids=["no method", "a stream that ends", "a stream that begins", "refused"],
)
def test_a_status_that_is_not_taken(path: str, work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a call ends without an answer and its status is not read in time, it is cut off, and no state remains."""
    monkeypatch.setattr(status, "PATIENCE", 0.05)
    service = Service()
    service.work = work

    async def test() -> None:
        loop: Any = asyncio.get_running_loop()
        serving, call = Serving(loop), Stuck(loop)
        serving.begin(call.event(), path, service if work else SimpleNamespace(service=lambda _: None), 0)
        await asyncio.wait_for(call.cancelled.wait(), PATIENCE)
        while serving.under_way():
            await asyncio.sleep(0)
        assert (serving.ending, serving._young, serving._older) == ({}, set(), set())

    asyncio.run(test())


def test_so_many_statuses_that_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of unread statuses is bounded; one more resets the oldest call."""
    monkeypatch.setattr(shares, "LAST_WORDS", Limit("test", 2, "calls", ""))

    async def test() -> None:
        loop: Any = asyncio.get_running_loop()
        serving, calls = Serving(loop), [Stuck(loop) for _ in range(3)]
        for call in calls:
            serving.begin(call.event(), "/no/method", SimpleNamespace(service=lambda _: None), 0)
        await asyncio.sleep(0.05)
        assert [call.cancelled.is_set() for call in calls] == [True, False, False]
        assert len(serving.ending) == 2
        for call in calls[1:]:
            call.cancel()
        while serving.ending:
            await asyncio.sleep(0)

    asyncio.run(test())


def test_many_who_hang_up_at_once() -> None:
    """Callers that hang up are processed a few per turn of the loop, so that thousands do not delay other calls."""

    async def test() -> None:
        loop: Any = asyncio.get_running_loop()
        serving, waiting = Serving(loop), [loop.create_future() for _ in range(3 * PARTINGS)]
        gone = SimpleNamespace(success=False)
        hung_up = SimpleNamespace(success=True)
        nothing = SimpleNamespace(message=lambda: None)
        for number, future in enumerate(waiting):
            serving.settle(future, *((nothing, hung_up) if number % 2 else (None, gone)))
        here = loop.create_future()
        serving.settle(here, SimpleNamespace(message=lambda: b"a message"), hung_up)
        assert here.result() is True
        for turn in range(4):
            assert sum(future.done() for future in waiting) == turn * PARTINGS
            await asyncio.sleep(0)
        assert [future.result() for future in waiting[:2]] == [False, True]

    asyncio.run(test())
