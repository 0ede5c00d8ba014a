"""HTTP/2 for attackers: with the h2 library if they keep to the protocol, with frames of our own if they do not."""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hpack import Encoder
from hpack.struct import NeverIndexedHeaderTuple

from tests.siege.scene import Scene

T = TypeVar("T")

HEALTH = "/grpc.health.v1.Health"
SERVICE = "/tumbler.v1.ApiKeyService"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, END_HEADERS = 1, 4
ACK = 1

_AT_ONCE = 100
"""Connections that are opened at the same time. More than the listener's backlog would only measure the backlog."""

AGAIN = 1.0
"""Seconds until streams that the server has ended are reopened. Reopening many at once would be another attack."""

GONE = (OSError, h2.exceptions.ProtocolError, asyncio.IncompleteReadError, ssl.SSLError)
"""The errors of a connection that the server ended."""


def framed(message: bytes, compressed: bool = False) -> bytes:
    """Return a message as gRPC sends it, prefixed with its length."""
    return bytes((compressed,)) + len(message).to_bytes(4, "big") + message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return an HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def headers(path: str, key: str = "", *more: tuple[str, str], without: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the headers of a gRPC call."""
    usual = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    usual += [("te", "trailers"), ("content-type", "application/grpc")]
    replaced = {name for name, _ in more} | set(without)
    credential = [("authorization", f"Bearer {key}")] if key else []
    return [each for each in usual if each[0] not in replaced] + credential + sorted(more, key=lambda each: each[0])


def block(fields: Sequence[tuple[str, str | bytes]]) -> bytes:
    """Return headers as a block that can be sent repeatedly: it adds nothing to the receiver's table."""
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in fields])


async def within(seconds: float, awaited: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine with a timeout. Raises ``asyncio.TimeoutError``.

    Up to Python 3.11, ``asyncio.wait_for`` can lose a cancellation, so a loop around it might never end.
    """
    task = asyncio.ensure_future(awaited)
    try:
        if not (await asyncio.wait([task], timeout=seconds))[0]:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


async def connect(scene: Scene) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, with TLS if the server speaks it."""
    if scene.ca is None:
        return await asyncio.open_connection(*scene.address)
    context = ssl.create_default_context(cadata=scene.ca.decode())
    context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection(*scene.address, ssl=context)


def hang_up(writer: asyncio.StreamWriter) -> None:
    """Abort a connection at once, and drop unsent data."""
    with suppress(Exception):
        writer.transport.abort()


@asynccontextmanager
async def raw(scene: Scene, reads: bool = True, settings: bytes = b"") -> AsyncIterator[asyncio.StreamWriter]:
    """Open a connection and send the HTTP/2 preface. The caller sends the rest, and responses are dropped."""
    reader, writer = await connect(scene)
    reading = asyncio.create_task(_drop(reader, writer)) if reads else None
    try:
        writer.write(PREFACE + frame(SETTINGS, 0, 0, settings))
        yield writer
    finally:
        if reading:
            reading.cancel()
        hang_up(writer)


async def _drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(*GONE):
        while await reader.read(1 << 16):
            pass
    hang_up(writer)


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, int]]:
    """Yield the kind and the flags of each received frame."""
    came = b""
    while data := await reader.read(1 << 16):
        came += data
        at = 0
        while len(came) >= at + 9 and len(came) >= (end := at + 9 + int.from_bytes(came[at : at + 3], "big")):
            yield came[at + 3], came[at + 4]
            at = end
        came = came[at:]


class Line:
    """An HTTP/2 connection that keeps to the protocol. With a ``window``, each stream's window starts at that size."""

    def __init__(self, scene: Scene, counts: Counter[str], window: int | None = None) -> None:
        self.streams: set[int] = set()
        """The open streams."""
        self.closed = False
        self.filled = 0.0
        """When streams were last opened on it."""
        self._scene, self._counts, self._window = scene, counts, window
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self._h2 = h2.connection.H2Connection(config)
        self._moved = asyncio.Event()
        self._settled = asyncio.Event()

    async def __aenter__(self) -> "Line":
        self._reader, self._writer = await connect(self._scene)
        if self._window is not None:
            self._h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: self._window}
            )
        self._h2.initiate_connection()
        self._flush()
        self._reading = asyncio.create_task(self._read())
        with suppress(asyncio.TimeoutError):  # a server that hangs does not send its settings
            await within(2, self._settled.wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        hang_up(self._writer)

    def begin(self, fields: Sequence[tuple[str, str]], body: bytes = b"", end: bool = False) -> int:
        """Begin a call with a body that fits into any window. Raises the errors in ``GONE``."""
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, fields, end_stream=end and not body)
        self.streams.add(stream)
        if body:
            self._h2.send_data(stream, body, end_stream=end)
        self._flush()
        return stream

    def more(self, stream: int, data: bytes) -> None:
        """Send more of a call's body."""
        self._h2.send_data(stream, data)
        self._flush()

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self.streams.discard(stream)
        with suppress(h2.exceptions.StreamClosedError):
            self._h2.reset_stream(stream, 8)
        self._flush()

    async def call(self, fields: Sequence[tuple[str, str]], body: bytes) -> int:
        """Begin a call with a body of any length, sent as fast as flow control allows."""
        stream = self.begin(fields)
        while body and not self.closed and stream in self.streams:
            size = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(body))
            if size:
                self._h2.send_data(stream, body[:size], end_stream=size == len(body))
                body = body[size:]
                self._flush()
                await self._writer.drain()
            else:
                self._moved.clear()
                await self._moved.wait()
        return stream

    def _flush(self) -> None:
        if self.closed:
            raise ConnectionResetError("the server ended the connection")
        self._writer.write(self._h2.data_to_send())

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(1 << 16):
                for event in self._h2.receive_data(data):
                    self._take(event)
                self._flush()
        except GONE:
            pass
        self.closed = True
        self.streams.clear()
        self._moved.set()
        self._counts["connections ended by the server"] += 1
        hang_up(self._writer)

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length and event.stream_id:
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            if event.stream_id in self.streams:
                self._counts["streams ended by the server"] += 1
                self.streams.discard(event.stream_id)
            self._moved.set()
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._settled.set()
            self._moved.set()
        elif isinstance(event, h2.events.WindowUpdated):
            self._moved.set()


class Lines:
    """Many connections, with ``each`` streams on each. Those that the server ends are reopened."""

    def __init__(self, scene: Scene, counts: Counter[str], number: int, each: int, window: int | None = None) -> None:
        self._scene, self._counts, self._number, self._each, self._window = scene, counts, number, each, window
        self.lines: list[Line] = []

    async def keep(self, fields: Sequence[Sequence[tuple[str, str]]], body: bytes = b"", end: bool = False) -> None:
        """Keep all streams open until cancelled. The calls use ``fields`` in turn."""
        async with AsyncExitStack() as open_:
            begun = 0
            while True:
                self.lines = [line for line in self.lines if not line.closed]
                missing = min(self._number - len(self.lines), _AT_ONCE)
                opened = await asyncio.gather(*(self._open(open_) for _ in range(missing)))
                self.lines += [line for line in opened if line]
                now = time.monotonic()
                for line in (line for line in self.lines if line.filled < now - AGAIN):
                    line.filled = now
                    with suppress(*GONE):  # the library refuses more streams than the server allows
                        while len(line.streams) < self._each and not line.closed:
                            line.begin(fields[begun % len(fields)], body, end)
                            begun += 1
                            self._counts["streams begun"] += 1
                held = sum(len(line.streams) for line in self.lines)
                self._counts["most streams open"] = max(held, self._counts["most streams open"])
                await asyncio.sleep(0.05)

    async def _open(self, open_: AsyncExitStack) -> Line | None:
        line = Line(self._scene, self._counts, self._window)
        try:
            await open_.enter_async_context(line)
        except GONE:
            self._counts["connections refused"] += 1
            await asyncio.sleep(0.1)
            return None
        return line
