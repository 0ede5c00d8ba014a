"""Attackers without a key: whatever any client that reaches the port can send."""

import asyncio
import gzip
import itertools
import os
import resource
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.harness import forged
from tests.siege import wire
from tests.siege.scene import Scene, Tally
from tests.siege.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GONE,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Lines,
    frame,
    framed,
)
from tumbler.v1 import api_key_service_pb2 as pb

METHODS = ("Verify", "Get", "BatchVerify", "Watch")
SERVICE = pb.DESCRIPTOR.services_by_name["ApiKeyService"]
PATHS = (*(f"{wire.SERVICE}/{name}" for name in METHODS), f"{wire.HEALTH}/Check")
VERIFY = PATHS[0]
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


async def headers_16(scene: Scene, tally: Tally) -> None:
    """Open 16 calls of Verify and send no message."""
    await Lines(scene, tally.counts, 1, 16).keep([wire.headers(VERIFY)])


async def headers_100(scene: Scene, tally: Tally) -> None:
    """Open 100 such calls on each of five connections, one for each method."""
    kept = (Lines(scene, tally.counts, 1, 100).keep([wire.headers(path)]) for path in PATHS)
    await asyncio.gather(*kept)


async def headers_5000(scene: Scene, tally: Tally) -> None:
    """Open 5,000 such calls, 100 a connection."""
    await Lines(scene, tally.counts, 50, 100).keep([wire.headers(path) for path in PATHS])


async def strangers_calls(scene: Scene, tally: Tally) -> None:
    """Open 4,800 calls that need no key, 16 a connection, and send no message."""
    paths = (f"{wire.HEALTH}/Check", f"{wire.HEALTH}/Watch", REFLECTION, f"{wire.SERVICE}/ClaimRotation")
    await Lines(scene, tally.counts, 300, 16).keep([wire.headers(path) for path in paths])


async def health_watchers(scene: Scene, tally: Tally) -> None:
    """Watch health 1,200 times, four a connection, and read no answer."""
    fields = wire.headers(f"{wire.HEALTH}/Watch")
    await Lines(scene, tally.counts, 300, 4, window=0).keep([fields], framed(b""), end=True)


async def unread_checks(scene: Scene, tally: Tally) -> None:
    """Check health 4,800 times, 16 a connection, and read no answer."""
    fields = wire.headers(f"{wire.HEALTH}/Check")
    await Lines(scene, tally.counts, 300, 16, window=0).keep([fields], framed(b""), end=True)


async def unread_statuses(scene: Scene, tally: Tally) -> None:
    """Make reflection fill 80 sockets that are never read, and check an unknown health service 16 times on each."""
    loop = asyncio.get_running_loop()
    window = (2**31 - 1).to_bytes(4, "big")
    begin = wire.PREFACE + frame(SETTINGS, 0, 0, (4).to_bytes(2, "big") + window)
    begin += frame(WINDOW_UPDATE, 0, 0, (2**31 - 1 - 65_535).to_bytes(4, "big"))
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=wire.SERVICE[1:]).SerializeToString()
    questions = framed(question) * (60_000 // len(framed(question)))
    begin += frame(HEADERS, END_HEADERS, 1, wire.block(wire.headers(REFLECTION)))
    begin += b"".join(frame(DATA, 0, 1, questions[at : at + 16_000]) for at in range(0, len(questions), 16_000))
    asked, unknown = wire.block(wire.headers(f"{wire.HEALTH}/Check")), health_pb2.HealthCheckRequest(service="nope")
    body = framed(unknown.SerializeToString())
    ask = b"".join(
        frame(HEADERS, END_HEADERS, stream, asked) + frame(DATA, END_STREAM, stream, body) for stream in range(3, 35, 2)
    )

    async def fill() -> None:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_304)
            connection.setblocking(False)
            await loop.sock_connect(connection, scene.address)
            await loop.sock_sendall(connection, begin)
            await asyncio.sleep(5)  # until the responses have filled all that the server may send
            while True:
                await loop.sock_sendall(connection, ask)
                tally.counts["checks"] += 16
                await asyncio.sleep(1_000)

    await asyncio.gather(*(fill() for _ in range(80)), return_exceptions=True)


async def half_body(scene: Scene, tally: Tally) -> None:
    """Announce a message of 1,000 bytes, 500 times, and send only that."""
    body = b"\0" + (1_000).to_bytes(4, "big")
    await Lines(scene, tally.counts, 5, 100).keep([wire.headers(path) for path in PATHS], body)


async def byte_a_second(scene: Scene, tally: Tally) -> None:
    """Announce a message of 1,000 bytes, 500 times, and send a byte of each every second."""
    lines = Lines(scene, tally.counts, 5, 100)

    async def drip() -> None:
        while True:
            await asyncio.sleep(1)
            for line in lines.lines:
                for stream in list(line.streams):
                    with suppress(*GONE):
                        line.more(stream, b"\x0a")

    body = b"\0" + (1_000).to_bytes(4, "big")
    await asyncio.gather(lines.keep([wire.headers(path) for path in PATHS], body), drip())


async def watch_and_cancel(scene: Scene, tally: Tally) -> None:
    """Watch health, read the first message, and cancel: again and again, up to 10,000 times."""
    await _watch_health(scene, tally, itertools.repeat("", 10_000))


async def watch_names(scene: Scene, tally: Tally) -> None:
    """Watch the health of 10,000 services that do not exist, each with a name of 1,000 characters."""
    await _watch_health(scene, tally, (f"{number:05}".ljust(1_000, "x") for number in range(10_000)))


async def _watch_health(scene: Scene, tally: Tally, names: Iterable[str]) -> None:
    numbers = iter(names)
    async with scene.channel() as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def one_after_another() -> None:
            for name in numbers:
                stream = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=5)
                try:
                    await stream.read()
                    tally.counts["first words read"] += 1
                except grpc.aio.AioRpcError as failure:
                    tally.counts[failure.code().name] += 1
                    await asyncio.sleep(0.05)
                finally:
                    stream.cancel()

        await asyncio.gather(*(one_after_another() for _ in range(50)))


async def watch_window_0(scene: Scene, tally: Tally) -> None:
    """Watch health 100 times with a flow-control window of 0; give up one of them ten times a second."""
    lines = Lines(scene, tally.counts, 2, 50, window=0)

    async def give_up() -> None:
        while True:
            await asyncio.sleep(0.1)
            for line in lines.lines:
                if line.streams:
                    line.reset(next(iter(line.streams)))

    await asyncio.gather(lines.keep([wire.headers(f"{wire.HEALTH}/Watch")], framed(b""), end=True), give_up())


async def empty_items(scene: Scene, tally: Tally) -> None:
    """Send batches of 520,000 empty items, 11 a second, without a key."""
    body = b"\x0a\0" * 520_000
    async with scene.channel() as channel:
        call = channel.unary_unary(f"{wire.SERVICE}/BatchVerify")

        async def send() -> None:
            try:
                await call(body, timeout=5)
            except grpc.aio.AioRpcError as failure:
                tally.counts[failure.code().name] += 1

        sending: set[asyncio.Task[None]] = set()
        while True:
            task = asyncio.create_task(send())
            sending.add(task)
            task.add_done_callback(sending.discard)
            tally.counts["batches sent"] += 1
            await asyncio.sleep(1 / 11)


async def unread_no_key(scene: Scene, tally: Tally) -> None:
    """Call Verify without a key as fast as it goes, and read no answer."""
    await _unread(scene, tally, wire.headers(VERIFY))


async def unread_wrong_key(scene: Scene, tally: Tally) -> None:
    """Call Verify as fast as it goes, with a key whose id exists and whose secret is wrong, and read no answer."""
    await _unread(scene, tally, wire.headers(VERIFY, forged(scene.known)))


async def _unread(scene: Scene, tally: Tally, fields: Sequence[tuple[str, str]]) -> None:
    """Call, with a window of 0, until the connection takes no more. Then leave it open, and go on with another."""
    headers, body = wire.block(fields), framed(b"")
    window_0 = (4).to_bytes(2, "big") + bytes(4)
    per_connection = 65_000 // len(body)  # the initial window: we never read the server's updates of it
    async with AsyncExitStack() as open_:
        while True:
            with suppress(*GONE, asyncio.TimeoutError):
                writer = await open_.enter_async_context(wire.raw(scene, reads=False, settings=window_0))
                for number in range(per_connection):
                    stream = 2 * number + 1
                    writer.write(frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body))
                    tally.counts["calls sent"] += 1
                    if number % 50 == 49:
                        await wire.within(2, writer.drain())
            await asyncio.sleep(0.01)


async def rapid_reset(scene: Scene, tally: Tally) -> None:
    """Begin calls and cancel each at once, as fast as it goes (CVE-2023-44487)."""
    headers = wire.block(wire.headers(VERIFY))

    def chunk(first: int) -> bytes:
        streams = range(first, first + 200, 2)
        return b"".join(
            frame(HEADERS, END_HEADERS, stream, headers) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
            for stream in streams
        )

    await flood(scene, tally, lambda: map(chunk, itertools.count(1, 200)), "resets sent", 100)


async def ping_flood(scene: Scene, tally: Tally) -> None:
    """Send pings as fast as it goes, and read no answer (CVE-2019-9512)."""
    chunk = frame(PING, 0, 0, b"siege..!") * 500
    await flood(scene, tally, lambda: itertools.repeat(chunk), "pings sent", 500, reads=False)


async def settings_flood(scene: Scene, tally: Tally) -> None:
    """Send settings as fast as it goes, and read no answer (CVE-2019-9515)."""
    chunk = frame(SETTINGS, 0, 0, (4).to_bytes(2, "big") + (65_535).to_bytes(4, "big")) * 500
    await flood(scene, tally, lambda: itertools.repeat(chunk), "settings sent", 500, reads=False)


async def continuation_flood(scene: Scene, tally: Tally) -> None:
    """Send headers that never end (CVE-2024-27316)."""
    chunk = frame(CONTINUATION, 0, 1, wire.block([("x-siege", "y" * 1_000)]) * 15)
    first = frame(HEADERS, 0, 1, wire.block(wire.headers(VERIFY)))
    await flood(scene, tally, lambda: itertools.chain([first], itertools.repeat(chunk)), "frames sent", 1)


async def huge_headers(scene: Scene, tally: Tally) -> None:
    """Send calls with 1 MiB of headers each."""
    lines = wire.block([("x-siege", "y" * 1_000)]) * 15

    def call(stream: int) -> bytes:
        begun = frame(HEADERS, 0, stream, wire.block(wire.headers(VERIFY)))
        return begun + frame(CONTINUATION, 0, stream, lines) * 70 + frame(CONTINUATION, END_HEADERS, stream, b"")

    await flood(scene, tally, lambda: map(call, itertools.count(1, 2)), "calls sent", 1)


async def header_references(scene: Scene, tally: Tally) -> None:
    """Repeat a header of 3,900 bytes by one-byte references, 4,200 a call; 12 connections, 128 KiB a second each."""
    fields = wire.block(wire.headers(VERIFY))
    remembered = b"\x40\x01x\x7f" + _varint(3_900 - 127) + b"y" * 3_900  # RFC 7541, 6.2.1
    again = fields + b"\xbe" * 4_200

    def calls() -> Iterator[bytes]:
        yield frame(HEADERS, END_HEADERS | END_STREAM, 1, fields + remembered)
        for stream in itertools.count(3, 2):
            yield frame(HEADERS, END_HEADERS | END_STREAM, stream, again)

    await slow_flood(scene, tally, calls, "calls sent", 12, 128 << 10)


async def slow_windows(scene: Scene, tally: Tally) -> None:
    """Open the window by a byte each time, 2 MiB a second on each of 30 connections."""
    chunk = frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 500
    await slow_flood(scene, tally, lambda: itertools.repeat(chunk), "chunks sent", 30, 2 << 20)


async def herd(scene: Scene, tally: Tally) -> None:
    """Begin 100 calls of all methods on each of 200 connections at the same moment, cancel them, and repeat."""
    blocks = [wire.block(wire.headers(f"{wire.SERVICE}/{method.name}")) for method in SERVICE.methods]
    async with AsyncExitStack() as open_:
        writers = [await open_.enter_async_context(wire.raw(scene)) for _ in range(200)]
        for first in itertools.count(1, 200):
            streams = range(first, first + 200, 2)
            for number, writer in enumerate(writers):
                if not writer.is_closing():
                    kinds = itertools.islice(itertools.cycle(blocks), number, None)
                    calls = (frame(HEADERS, END_HEADERS, *call) for call in zip(streams, kinds, strict=False))
                    writer.write(b"".join(calls))
                    tally.counts["calls sent"] += 100
                    await asyncio.sleep(0)
            await asyncio.sleep(1)
            for writer in writers:
                if not writer.is_closing():
                    writer.write(b"".join(frame(RST_STREAM, 0, stream, b"\0\0\0\x08") for stream in streams))
                    await asyncio.sleep(0)
            await asyncio.sleep(0.3)


async def slow_flood(
    scene: Scene, tally: Tally, chunks: Callable[[], Iterator[bytes]], what: str, number: int, rate: int
) -> None:
    """Send chunks on ``number`` connections, at most ``rate`` bytes a second on each. Reopen those that end."""

    async def send() -> None:
        while True:
            with suppress(*GONE):
                async with wire.raw(scene) as writer:
                    began, sent = time.monotonic(), 0
                    for chunk in chunks():
                        writer.write(chunk)
                        sent += len(chunk)
                        tally.counts[what] += 1
                        await writer.drain()
                        await asyncio.sleep(max(0.0, sent / rate - (time.monotonic() - began)))
            tally.counts["connections ended by the server"] += 1
            await asyncio.sleep(0.05)

    await asyncio.gather(*(send() for _ in range(number)))


def _varint(number: int) -> bytes:
    """Return the rest of a number in HPACK's encoding, beyond what the prefix holds."""
    head = b""
    while number >= 128:
        head += bytes((number % 128 + 128,))
        number //= 128
    return head + bytes((number,))


async def flood(
    scene: Scene, tally: Tally, chunks: Callable[[], Iterator[bytes]], what: str, in_a_chunk: int, reads: bool = True
) -> None:
    """Send chunks on four connections. Reopen those that end, and start their chunks again."""

    async def send() -> None:
        while True:
            try:
                async with wire.raw(scene, reads) as writer:
                    for chunk in chunks():
                        writer.write(chunk)
                        tally.counts[what] += in_a_chunk
                        await wire.within(2, writer.drain())
            except asyncio.TimeoutError:
                tally.counts["connections on which nothing was taken"] += 1
            except GONE:
                tally.counts["connections ended by the server"] += 1
                await asyncio.sleep(0.01)

    await asyncio.gather(*(send() for _ in range(4)))


async def idle_connections(scene: Scene, tally: Tally) -> None:
    """Open 5,000 connections, send the HTTP/2 preface on every second one, and do nothing."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    hello = wire.PREFACE + frame(SETTINGS, 0, 0)
    await _connections(scene, tally, 5_000, lambda number: hello if number % 2 else b"")


async def full_table(scene: Scene, tally: Tally) -> None:
    """Keep 9,500 silent connections open, and reopen those that the server closes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def keep() -> None:
        while True:
            with suppress(*GONE):
                reader, writer = await wire.connect(scene)
                tally.counts["connections opened"] += 1
                try:
                    while await reader.read(1_024):
                        pass
                finally:
                    wire.hang_up(writer)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(keep() for _ in range(9_500)))


async def slow_tls(scene: Scene, tally: Tally) -> None:
    """Begin 500 TLS handshakes and finish none."""
    hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + os.urandom(32)  # the first 43 bytes of 517
    await _connections(scene, tally, 500, lambda _: hello)


async def _connections(scene: Scene, tally: Tally, number: int, first: Callable[[int], bytes]) -> None:
    writers: list[asyncio.StreamWriter] = []
    numbers = iter(range(number))

    async def one_after_another() -> None:
        for begun in numbers:
            with suppress(*GONE):
                _, writer = await asyncio.open_connection(*scene.address)
                writers.append(writer)
                writer.write(first(begun))
                tally.counts["connections opened"] += 1

    try:
        await asyncio.gather(*(one_after_another() for _ in range(50)))
        await asyncio.Event().wait()
    finally:
        for writer in writers:
            wire.hang_up(writer)


async def reflection_idle(scene: Scene, tally: Tally) -> None:
    """Open 500 reflection streams without a request."""
    await Lines(scene, tally.counts, 5, 100).keep([wire.headers(REFLECTION)])


async def gzip_bombs(scene: Scene, tally: Tally) -> None:
    """Send 100 MiB of zeros in a compressed message of 100 KiB, four at a time."""
    bomb = framed(gzip.compress(bytes(100 << 20), 9), compressed=True)
    fields = wire.headers(VERIFY, "", ("grpc-encoding", "gzip"))

    async def throw() -> None:
        while True:
            try:
                async with wire.Line(scene, tally.counts) as line:
                    while not line.closed:
                        stream = await wire.within(5, line.call(fields, bomb))
                        tally.counts["bombs sent"] += 1
                        while stream in line.streams:
                            await asyncio.sleep(0.01)
            except (*GONE, asyncio.TimeoutError):
                await asyncio.sleep(0.05)

    await asyncio.gather(*(throw() for _ in range(4)))


async def garbage(scene: Scene, tally: Tally) -> None:
    """Send random bytes, with the HTTP/2 preface and without."""
    await _strangers(scene, tally, lambda number: (wire.PREFACE if number % 2 else b"") + os.urandom(4_096))


async def http1(scene: Scene, tally: Tally) -> None:
    """Send HTTP/1.1 requests."""
    await _strangers(scene, tally, lambda _: b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def open_close(scene: Scene, tally: Tally) -> None:
    """Open connections and close each at once."""
    await _strangers(scene, tally, lambda _: b"")


async def _strangers(scene: Scene, tally: Tally, first: Callable[[int], bytes]) -> None:
    numbers = itertools.count()

    async def come_and_go() -> None:
        for number in numbers:
            with suppress(*GONE, asyncio.TimeoutError):
                reader, writer = await asyncio.open_connection(*scene.address)
                try:
                    if said := first(number):
                        writer.write(said)
                        await wire.within(1, reader.read(1_024))
                finally:
                    wire.hang_up(writer)
            tally.counts["connections"] += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(come_and_go() for _ in range(8)))


async def odd_requests(scene: Scene, tally: Tally) -> None:
    """Call with an invalid path, without ``te``, with a wrong content type, method or length, in turn."""
    odd: list[list[tuple[str, Any]]] = [
        wire.headers("no/slash/first"),
        wire.headers("/" + "x" * 4_000),
        wire.headers("/\x7f\x01/ä"),
        [(name, b"/\xff\xfe" if name == ":path" else value) for name, value in wire.headers("")],
        [*wire.headers(VERIFY), *[("x", b"\xff")] * 100],
        wire.headers(f"{wire.SERVICE}/None"),
        wire.headers(VERIFY, without=["te"]),
        wire.headers(VERIFY, "", ("content-type", "text/html")),
        wire.headers(VERIFY, without=["content-type"]),
        wire.headers(VERIFY, "", (":method", "GET")),
        wire.headers(VERIFY, "", ("grpc-timeout", "99999999999H")),
        wire.headers(VERIFY, "", ("grpc-encoding", "unknown")),
        wire.headers(VERIFY, "", ("authorization", "Bearer " + "x" * 8_000)),
    ]
    body = framed(pb.VerifyRequest(key="x").SerializeToString())
    async with AsyncExitStack() as open_:
        line: wire.Line | None = None
        for number in itertools.count():
            try:
                if line is None or line.closed:
                    line = await open_.enter_async_context(wire.Line(scene, tally.counts))
                line.begin(odd[number % len(odd)], body, end=True)
                tally.counts["calls sent"] += 1
            except GONE:
                line = None
            while line and len(line.streams) > 50:
                await asyncio.sleep(0.01)
            if number % 10 == 0:
                await asyncio.sleep(0.005)


async def checks(scene: Scene, tally: Tally) -> None:
    """Check health, 16 calls at a time on each of four connections, and read all answers: as many no-ops."""
    check = wire.block(wire.headers(f"{wire.HEALTH}/Check"))
    window = (2**31 - 1 - 65_535).to_bytes(4, "big")

    async def call() -> None:
        reader, writer = await wire.connect(scene)
        try:
            writer.write(wire.PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, window))
            streams = itertools.count(1, 2)
            ended = 16
            async for kind, flags in wire.frames(reader):
                if kind == SETTINGS and not flags:
                    writer.write(frame(SETTINGS, wire.ACK, 0))
                elif kind == PING and not flags:
                    writer.write(frame(PING, wire.ACK, 0, bytes(8)))
                elif kind == HEADERS and flags & END_STREAM:
                    tally.counts["calls answered"] += 1
                    ended += 1
                elif kind == RST_STREAM:
                    tally.counts["calls reset"] += 1
                    ended += 1
                if ended >= 8:
                    calls = (
                        frame(HEADERS, END_HEADERS, stream, check) + frame(DATA, END_STREAM, stream, framed(b""))
                        for stream in itertools.islice(streams, ended)
                    )
                    writer.write(b"".join(calls))
                    ended = 0
        finally:
            wire.hang_up(writer)

    await asyncio.gather(*(call() for _ in range(4)))
