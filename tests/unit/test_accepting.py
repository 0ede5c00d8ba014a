"""Accepting calls from gRPC, over real sockets, by a server on a loop."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import grpc
import pytest
from grpc._cython import cygrpc

from tests.unit.test_lanes import PATIENCE
from tumbler_server import shares
from tumbler_server.rpc.accepting import FEW, SOME, Accepting, Service
from tumbler_server.rpc.headers import Headers
from tumbler_server.rpc.loop import LoopThread
from tumbler_server.rpc.receiving import Method
from tumbler_server.rpc.serving import Details

FLOOD, QUIET, STREAM, UNKNOWN = "/tests.Service/Flood", "/tests.Service/Quiet", "/tests.Service/Stream", "/tests.No/No"
CALLS = 8 * SOME
_OPTIONS = (("grpc.max_metadata_size", 1 << 30), ("grpc.absolute_max_metadata_size", 1 << 30))


class Echo:
    """Returns every message, and records the called methods in order."""

    paths: ClassVar[Mapping[str, int]] = {FLOOD: SOME, QUIET: FEW, STREAM: FEW}

    def __init__(self) -> None:
        self.called: list[str] = []

    def service(self, details: Details) -> Method | None:
        if details.method not in self.paths:
            return None
        self.called.append(details.method)
        return Method(stream_stream=self._stream) if details.method == STREAM else Method(stream_unary=self._answer)

    async def _answer(self, _: object, context: Any) -> bytes:
        return bytes(await context.read())

    async def _stream(self, _: object, context: Any) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)


@contextmanager
def serving(
    service: Service | None = None, has_gone: Callable[[Any], bool] = lambda _: False
) -> Iterator[tuple[Echo, LoopThread, grpc.Channel]]:
    """Serve the echo, or another service, on its own loop, and connect to it."""
    thread, echo = LoopThread(), Echo()

    async def begin() -> tuple[Accepting, int]:
        accepts = Accepting(thread.loop, _OPTIONS, (service or echo,), has_gone)
        port = accepts.listen("127.0.0.1:0")
        accepts.start()
        return accepts, port

    server, port = thread.run(begin())
    with grpc.insecure_channel(f"127.0.0.1:{port}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE)
        yield echo, thread, channel
    thread.run(server.stop(None))
    thread.close()


@pytest.fixture
def echoing() -> Iterator[grpc.Channel]:
    """Yield a channel to the echo."""
    with serving() as (_, _, channel):
        yield channel


def test_it_is_served(echoing: grpc.Channel) -> None:
    """Each call gets its own answer."""
    calls = [echoing.unary_unary(QUIET).future(b"%d" % number, timeout=PATIENCE) for number in range(CALLS)]
    assert [call.result() for call in calls] == [b"%d" % number for number in range(CALLS)]
    assert [*echoing.stream_stream(STREAM)(iter([b"1", b"2"]), timeout=PATIENCE)] == [b"1", b"2"]


def test_no_such_method() -> None:
    """A call of an unknown method gets UNIMPLEMENTED."""
    with serving() as (_, _, channel):
        assert channel.unary_unary(UNKNOWN).future(b"", timeout=PATIENCE).code() is grpc.StatusCode.UNIMPLEMENTED


def test_who_is_asked_about_methods_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first service is asked about unknown methods, without their path, and may serve such calls."""

    async def answer(_: object, context: Any) -> bytes:
        return b"none"

    with serving() as (echo, _, channel):
        asked = list[str]()
        monkeypatch.setattr(echo, "service", lambda details: asked.append(details.method) or Method(answer))
        assert channel.unary_unary(UNKNOWN)(b"", timeout=PATIENCE) == b"none"
    assert asked == [""]


def test_a_path_that_is_no_text() -> None:
    """A call whose path is not UTF-8 counts as an unknown method, and disturbs no other call."""
    with serving() as (_, _, channel):
        for _ in range(3 * SOME):
            call = channel.unary_unary(b"/\xff\xfe/x").future(b"", timeout=PATIENCE)
            assert call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert channel.unary_unary(QUIET)(b"here", timeout=PATIENCE) == b"here"


def test_a_caller_who_has_gone_before(echoing: grpc.Channel) -> None:
    """Calls cancelled at once keep no place: later calls are served."""
    for _ in range(2 * SOME):
        echoing.unary_unary(QUIET).future(b"", timeout=PATIENCE).cancel()
    assert echoing.unary_unary(QUIET)(b"here", timeout=PATIENCE) == b"here"


def test_methods_are_apart() -> None:
    """A call is accepted soon, however many calls of another method came before it."""
    with serving() as (echo, thread, channel):
        stands = thread.loop.call_soon_threadsafe
        stands(time.sleep, 1.0)
        flood = [channel.unary_unary(FLOOD).future(b"", timeout=PATIENCE) for _ in range(CALLS)]
        last = channel.unary_unary(QUIET).future(b"", timeout=PATIENCE)
        assert last.result() == b""
        assert all(call.result() == b"" for call in flood)
    # Some were accepted before the loop slept; each of them frees a place, and one more is accepted.
    assert echo.called.index(QUIET) <= 3 * SOME < CALLS


def test_calls_of_a_connection_that_has_gone() -> None:
    """Calls of a closed connection end as they are accepted, and are not served; others are."""
    asked = list[bytes]()

    def has_gone(call: Any) -> bool:
        asked.append(call.peer())
        return len(asked) > 1

    with serving(has_gone=has_gone) as (echo, _, channel):
        assert channel.unary_unary(QUIET)(b"here", timeout=PATIENCE) == b"here"
        call = channel.unary_unary(QUIET).future(b"", timeout=PATIENCE)
        assert call.code() is grpc.StatusCode.CANCELLED
    assert echo.called == [QUIET]


def test_what_is_kept_of_headers() -> None:
    """Headers beyond the maximum are counted and not kept; metadata for clients is kept completely."""
    headers, one = Headers(), ("x", "y" * 4_095)
    headers.begin()
    try:
        kept = [cygrpc._Metadatum(*one) for _ in range(1_000)]
    finally:
        headers.end()
    assert headers.size == 1_000 * 4_096
    assert [*filter(all, kept)] == [one] * 5  # the fourth was the last allowed, and the fifth shows the excess
    assert [cygrpc._Metadatum(*one) for _ in range(10)] == [one] * 10


@pytest.mark.parametrize("many", [False, True])
def test_headers_that_are_named_by_a_byte(many: bool) -> None:
    """Of too large headers no more than the maximum is kept, and their full size is known."""
    seen = list[tuple[int, int]]()

    class Look(Echo):
        def service(self, details: Any) -> Method | None:
            seen.append((details.size, sum(len(value) for _, value in details.invocation_metadata)))
            return super().service(details)

    value = "y" * 3_900
    with serving(Look()) as (_, _, channel):
        headers = [("x-any", value)] * (400 if many else 4)  # by HPACK, gRPC sends all but the first as one byte
        assert channel.unary_unary(QUIET)(b"here", metadata=headers, timeout=PATIENCE) == b"here"
    ((size, kept),) = seen
    assert size > len(headers) * 3_900
    assert kept == 0 if many else 4 * 3_900 <= kept <= shares.HEADER_BYTES.most


def turns_of_a_slow_loop(number: int) -> int:
    """Send this number of calls to a loop whose turns take a millisecond each; return how many turns it took."""
    turns = 0

    async def be_slow() -> None:
        nonlocal turns
        while True:
            time.sleep(0.001)
            turns += 1
            await asyncio.sleep(0)

    with serving() as (_, thread, channel):
        slow = asyncio.run_coroutine_threadsafe(be_slow(), thread.loop)
        for call in [channel.unary_unary(FLOOD).future(b"", timeout=PATIENCE) for _ in range(number)]:
            call.result()
        slow.cancel()
    return turns


def test_a_turn_of_the_loop_brings_all_that_has_come() -> None:
    """Many calls take few turns of the loop, however long a turn is; gRPC's own way would take several for each."""
    number = 1_000
    # In its own process, because gRPC starts only once in a process.
    code = f"from {__name__} import turns_of_a_slow_loop as turns; print(turns({number}))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert 0 < int(told.stdout) < number


def test_the_end_without_calls() -> None:
    """A server without calls stops at once, and another can start after it."""
    for _ in range(2):
        began = time.monotonic()
        with serving():
            pass
        assert time.monotonic() - began < PATIENCE
