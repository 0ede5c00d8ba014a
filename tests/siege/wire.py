"""HTTP/2 as attackers speak it: by the h2 library where the protocol is kept, by frames of our own where it is not."""

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
"""Connections that are opened at the same time: more than a listener's queue holds would measure the queue."""

AGAIN = 1.0
"""Seconds after which streams that the server has ended are begun again: many at once is an attack of its own."""

GONE = (OSError, h2.exceptions.ProtocolError, asyncio.IncompleteReadError, ssl.SSLError)
"""What a connection that the server ended raises."""


def framed(message: bytes, compressed: bool = False) -> bytes:
    """Return a message as gRPC sends it, with its length before it."""
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
    """Return headers as a block that can be sent again and again: nothing in it enters the receiver's table."""
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in fields])


async def within(seconds: float, awaited: Coroutine[Any, Any, T]) -> T:
    """Wait for something, but only so long. Raises ``asyncio.TimeoutError``.

    Up to Python 3.11, ``asyncio.wait_for`` can lose a cancellation: who calls it in a loop would never end.
    """
    task = asyncio.ensure_future(awaited)
    try:
        if not (await asyncio.wait([task], timeout=seconds))[0]:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


async def connect(scene: Scene) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection, with TLS where the server speaks it."""
    if scene.ca is None:
        return await asyncio.open_connection(*scene.address)
    context = ssl.create_default_context(cadata=scene.ca.decode())
    context.set_alpn_protocols(["h2"])
    return await asyncio.open_connection(*scene.address, ssl=context)


def hang_up(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, whatever is still to be sent."""
    with suppress(Exception):
        writer.transport.abort()


@asynccontextmanager
async def raw(scene: Scene, reads: bool = True, settings: bytes = b"") -> AsyncIterator[asyncio.StreamWriter]:
    """Open a connection and introduce oneself; what is sent on it is the caller's affair, and answers are dropped."""
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
    """Give the kind and the flags of each frame that comes."""
    came = b""
    while data := await reader.read(1 << 16):
        came += data
        at = 0
        while len(came) >= at + 9 and len(came) >= (end := at + 9 + int.from_bytes(came[at : at + 3], "big")):
            yield came[at + 3], came[at + 4]
            at = end
        came = came[at:]


class Line:
    """An HTTP/2 connection that keeps the protocol. With a ``window``, that is all that the server may ever send."""

    def __init__(self, scene: Scene, counts: Counter[str], window: int | None = None) -> None:
        self.streams: set[int] = set()
        """Those that are open."""
        self.closed = False
        self.filled = 0.0
        """When streams were last begun on it."""
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
        with suppress(asyncio.TimeoutError):  # a server that hangs does not say how many streams it takes
            await within(2, self._settled.wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        hang_up(self._writer)

    def begin(self, fields: Sequence[tuple[str, str]], body: bytes = b"", end: bool = False) -> int:
        """Begin a call with a body that fits into any window. Raises what ``GONE`` names."""
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, fields, end_stream=end and not body)
        self.streams.add(stream)
        if body:
            self._h2.send_data(stream, body, end_stream=end)
        self._flush()
        return stream

    def more(self, stream: int, data: bytes) -> None:
        """Send a little more of a call's body."""
        self._h2.send_data(stream, data)
        self._flush()

    def reset(self, stream: int) -> None:
        """Cancel a call."""
        self.streams.discard(stream)
        with suppress(h2.exceptions.StreamClosedError):
            self._h2.reset_stream(stream, 8)
        self._flush()

    async def call(self, fields: Sequence[tuple[str, str]], body: bytes) -> int:
        """Begin a call with a body of any length, as fast as the server takes it."""
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
    """Many connections, each with so many streams; what the server ends is begun again."""

    def __init__(self, scene: Scene, counts: Counter[str], number: int, each: int, window: int | None = None) -> None:
        self._scene, self._counts, self._number, self._each, self._window = scene, counts, number, each, window
        self.lines: list[Line] = []

    async def keep(self, fields: Sequence[Sequence[tuple[str, str]]], body: bytes = b"", end: bool = False) -> None:
        """Keep all streams open until cancelled; the calls go round the kinds of ``fields``."""
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
                    with suppress(*GONE):  # beyond what the server has said it takes, the library refuses
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
