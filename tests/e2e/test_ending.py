"""How a server exits while clients hold connections, and what its log says of clients that leave."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest

from tests.e2e.service import PATIENCE, Service, eventually, refusals
from tests.harness import Refused
from tests.siege.wire import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    block,
    frame,
    framed,
    headers,
)
from tumbler.v1 import api_key_service_pb2 as pb

SERVICE = "tumbler.v1.ApiKeyService"

NO_WINDOW = b"\x00\x04\x00\x00\x00\x00"
"""An HTTP/2 setting: the peer's streams start with an empty flow-control window."""

ACK = 1

GRACE = 3.0


class Raw:
    """A raw connection, which can leave calls in states that no client library allows."""

    def __init__(self, service: Service, settings: bytes = b"") -> None:
        host, _, port = service.target.rpartition(":")
        self._service = service
        self._socket = socket.create_connection((host, int(port)), PATIENCE)
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        self._next = 1
        threading.Thread(target=self._read, daemon=True).start()

    def begin(self, path: str, message: bytes | None = None, ended: bool = True) -> None:
        """Send the headers of a call, and its message if given."""
        stream, self._next = self._next, self._next + 2
        self._socket.sendall(frame(HEADERS, END_HEADERS, stream, block(headers(path, self._service.key))))
        if message is not None:
            self._socket.sendall(frame(DATA, END_STREAM if ended else 0, stream, framed(message)))

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self._socket.sendall(data)

    def _read(self) -> None:
        """Acknowledge pings, because the server's graceful GOAWAY waits for that, and drop everything else."""
        with suppress(OSError), self._socket.makefile("rb") as stream:
            while head := stream.read(9):
                payload = stream.read(int.from_bytes(head[:3], "big"))
                if head[3] == PING and not head[4] & ACK:
                    self._socket.sendall(frame(PING, ACK, 0, payload))

    def close(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        with suppress(OSError):  # already closed
            self._socket.shutdown(socket.SHUT_RDWR)  # close() would wait for the reading thread
        self._socket.close()


@contextmanager
def raw(service: Service, settings: bytes = b"") -> Iterator[Raw]:
    """Open a raw connection."""
    connection = Raw(service, settings)
    try:
        yield connection
    finally:
        connection.close()


def complaints(service: Service) -> list[str]:
    """Return the log lines that are neither at level info nor the stop message."""
    news = ('"level": "info"', "Stopping: finishing the calls in flight.")
    return [line for line in service.stderr.splitlines() if not any(each in line for each in news)]


def watchers(service: Service) -> None:
    """Hold watch streams open."""
    for _ in range(20):
        service.watch().opened()


def nothing_but_headers(service: Service, held: ExitStack) -> None:
    """Start calls of every kind and send no message."""
    connection = held.enter_context(raw(service))
    for method in ("Verify", "BatchVerify", "Create", "Get", "Watch"):
        connection.begin(f"/{SERVICE}/{method}")
    connection.begin("/grpc.health.v1.Health/Check")
    connection.begin("/grpc.health.v1.Health/Watch")
    connection.begin("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")


def answers_nobody_takes(service: Service, held: ExitStack) -> None:
    """Start calls on a connection that accepts no byte of a response."""
    connection = held.enter_context(raw(service, NO_WINDOW))
    key = service.key
    connection.begin(f"/{SERVICE}/Verify", pb.VerifyRequest(key=key).SerializeToString())
    connection.begin(f"/{SERVICE}/List", pb.ListRequest(page_size=1_000).SerializeToString())
    connection.begin(f"/{SERVICE}/Watch", pb.WatchRequest(heartbeat_interval={"seconds": 1}).SerializeToString())
    connection.begin("/grpc.health.v1.Health/Watch", b"")
    connection.begin("/grpc.health.v1.Health/Check", b"")
    connection.begin("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\x3a\x00", ended=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_holds_a_server_beyond_its_grace(installed: Service, workers: int) -> None:
    """Open streams, half-sent requests and unread responses do not delay the exit beyond the grace period."""
    installed.start("--shutdown-grace", f"{GRACE:.0f}s", "--workers", str(workers))
    with ExitStack() as held:
        watchers(installed)
        for _ in range(4):
            nothing_but_headers(installed, held)
            answers_nobody_takes(installed, held)
        assert installed.verdict(installed.key) == "VALID"
        installed.signal(signal.SIGTERM)
        began = time.monotonic()
        assert installed.wait() == 0
        assert time.monotonic() - began < GRACE + 2
    assert complaints(installed) == []


def test_who_sends_nothing_or_listens_does_not_delay_the_end(embedded: Service) -> None:
    """Streams and calls without a request end at once: the grace period does not apply to them."""
    embedded.start("--shutdown-grace", "1m")
    with ExitStack() as held:
        watchers(embedded)
        nothing_but_headers(embedded, held)
        assert embedded.verdict(embedded.key) == "VALID"
        embedded.signal(signal.SIGTERM)
        assert embedded.wait(10) == 0


def test_a_caller_whose_request_never_came_is_told_why(embedded: Service) -> None:
    """On shutdown, a call that has not sent its request ends with SERVER_STOPPING."""
    embedded.start("--shutdown-grace", "1m")
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(PATIENCE)
        yield from ()

    call = embedded.channel.stream_unary(f"/{SERVICE}/Get").future(nothing(), metadata=embedded.metadata)
    assert embedded.verdict(embedded.key) == "VALID"
    embedded.signal(signal.SIGTERM)
    with pytest.raises(Refused) as refused, refusals():
        call.result(PATIENCE)
    over.set()
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
    assert embedded.wait(10) == 0


def test_the_log_says_nothing_of_callers_who_leave(installed: Service) -> None:
    """Clients that cancel, disconnect or send garbage cause no log line, because these could fill the disk."""
    installed.start("--workers", "2")
    for _ in range(10):
        with ExitStack() as held:
            nothing_but_headers(installed, held)
            answers_nobody_takes(installed, held)
            nonsense = held.enter_context(raw(installed))
            nonsense.begin(f"/{SERVICE}/Verify", b"\xff" * 9)
            nonsense.begin(f"/{SERVICE}/NoSuchMethod", b"\xff" * 9)
            nonsense.begin("/grpc.health.v1.Health/Check", b"\xff" * 9)
            nonsense.begin("/grpc.health.v1.Health/Watch", b"\xff" * 9)
            nonsense.begin("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\xff" * 9)
            nonsense.send(frame(DATA, END_STREAM, 1_001, framed(b"")))
            held.enter_context(raw(installed)).send(b"GET / HTTP/1.1\r\n\r\n")
            under_way = [
                installed.begin("Verify", pb.VerifyRequest(key=installed.key)),
                installed.begin("List", pb.ListRequest(page_size=1_000)),
                installed.begin("Create", pb.CreateRequest(project_id="acme", name="nobody waits for it")),
            ]
            watching = [installed.watch() for _ in range(4)]
            assert installed.verdict(installed.key) == "VALID"
            for call in [*under_way, *(stream.call for stream in watching)]:
                call.cancel()
    eventually(lambda: installed.verdict(installed.key) == "VALID")
    assert installed.stop() == 0
    assert complaints(installed) == []
