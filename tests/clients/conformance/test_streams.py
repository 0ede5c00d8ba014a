"""Streams of gRPC and HTTP behind each guard end with their key, when a real server changes it."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from tests.clients.conformance.scene import PROMPTLY, Scene
from tests.e2e.service import eventually

GRACE = 2.0
SCOPE = "orders:read"

NOT_VALID = ("UNAUTHENTICATED", "a valid API key is required")
NOT_FOR_THIS = ("PERMISSION_DENIED", "this API key does not allow that")
BROKEN_OFF = ("broken off", "")


class Stream:
    """A stream that a thread reads."""

    def __init__(self, name: str, read: Callable[["Stream"], tuple[str, str]]) -> None:
        self.name = name
        self.words = 0
        self.end: tuple[str, str] | None = None
        self.ended_at = 0.0
        self.hang_up: Callable[[], Any] = lambda: None
        self._read = read
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.end = self._read(self)
        self.ended_at = time.time()


def by_grpc(port: int, key: str) -> Callable[[Stream], tuple[str, str]]:
    """Return a function that reads a gRPC stream, and returns how it ended."""

    def read(stream: Stream) -> tuple[str, str]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_stream("/tumbler.v1.ApiKeyService/Watch")
            call = method(b"", metadata=(("authorization", f"Bearer {key}"),))
            stream.hang_up = call.cancel
            try:
                for _ in call:
                    stream.words += 1
            except grpc.RpcError as error:
                return error.code().name, error.details()
        return "OK", ""

    return read


def by_http(port: int, key: str) -> Callable[[Stream], tuple[str, str]]:
    """Return a function that reads a response sent in parts, and returns how it ended."""

    def read(stream: Stream) -> tuple[str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * PROMPTLY)
        with contextlib.closing(connection):
            connection.request("GET", "/stream", headers={"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            stream.hang_up = lambda: connection.sock and connection.sock.close()
            assert answer.status == 200
            try:
                while answer.read1(64):
                    stream.words += 1
            except (http.client.HTTPException, OSError):
                return BROKEN_OFF
        return "ended as if it were whole", ""

    return read


class Streams:
    """A stream of each service that a program offers, all with one key."""

    def __init__(self, scene: Scene, *scopes: str, **fields: Any) -> None:
        self.scene = scene
        self.created = scene.create(*scopes, **fields)
        self.key_id = self.created.api_key.id
        scene.remembered(self.created.key)
        offered = scene.program.call("serve")
        assert offered["grpc"], offered
        self.all: list[Stream] = []
        for protocol, reading in (("grpc", by_grpc), ("http", by_http)):
            for name, port in offered[protocol].items():
                self.all.append(Stream(name, reading(port, self.created.key)))
        self.speak()

    def speak(self) -> None:
        """Return once each stream has sent five more messages."""
        before = [stream.words for stream in self.all]
        for stream, words in zip(self.all, before, strict=True):
            eventually(lambda stream=stream, words=words: stream.words >= words + 5 or stream.end, PROMPTLY)
            assert stream.end is None, (stream.name, stream.end)

    def become(self, end: tuple[str, str], not_before: float = 0.0) -> None:
        """Return once each stream has ended as it should. A response sent in parts can only be broken off."""
        for stream in self.all:
            eventually(lambda stream=stream: stream.end, PROMPTLY)
            assert stream.end in (end, BROKEN_OFF), (stream.name, stream.end)
            assert stream.ended_at >= not_before, stream.name

    def hang_up(self) -> None:
        """Hang up the streams that are left."""
        for stream in self.all:
            if stream.end is None:
                stream.hang_up()


@pytest.fixture
def streams(scene: Scene) -> Iterator[Callable[..., Streams]]:
    """Yield a function that opens streams behind a program's verifier."""
    scene.open()
    made = []

    def opened(*scopes: str, **fields: Any) -> Streams:
        made.append(Streams(scene, *(scopes or (SCOPE,)), **fields))
        return made[-1]

    yield opened
    for each in made:
        each.hang_up()


CHANGES: dict[str, tuple[Callable[[Streams], Any], tuple[str, str]]] = {
    "revoked": (lambda streams: streams.scene.service.revoke(streams.key_id), NOT_VALID),
    "switched off": (lambda streams: streams.scene.service.set_active(streams.key_id, active=False), NOT_VALID),
    "rotated without grace": (lambda streams: streams.scene.service.rotate(streams.key_id, grace=0), NOT_VALID),
    "a scope is taken": (lambda streams: streams.scene.update(streams.key_id, scopes=["other:read"]), NOT_FOR_THIS),
    "a network is set": (
        lambda streams: streams.scene.update(streams.key_id, allowed_cidrs=["192.0.2.0/24"]),
        NOT_FOR_THIS,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_ends_what_it_forbids(streams: Callable[..., Streams], change: str) -> None:
    """A change that forbids a key ends all its streams, and no stream of another key."""
    make, end = CHANGES[change]
    ending, other = streams(), streams()
    make(ending)
    ending.become(end)
    other.speak()


def test_an_end_that_comes_by_itself(streams: Callable[..., Streams]) -> None:
    """An expiry, which no event announces, ends every stream at that instant, and not before."""
    ends = int(time.time()) + 8  # opening takes a while on a busy machine
    opened = streams(expire_time={"seconds": ends})
    opened.become(NOT_VALID, not_before=ends - 0.5)


def test_the_end_of_a_grace(streams: Callable[..., Streams]) -> None:
    """A rotated key's streams continue through its grace period, and end with it."""
    opened = streams()
    rotated = opened.scene.service.rotate(opened.key_id, grace=GRACE)
    ends = rotated.old_api_key.grace_expire_time.ToNanoseconds() / 1e9
    opened.become(NOT_VALID, not_before=ends - 0.5)


def test_a_change_that_forbids_nothing(streams: Callable[..., Streams]) -> None:
    """A change that leaves the key valid for a stream does not end the stream."""
    opened = streams(SCOPE, "other:read")
    scene, key = opened.scene, opened.created.key
    scene.update(opened.key_id, scopes=["orders:*"], owner_id="another", allowed_cidrs=["127.0.0.0/8"])
    eventually(lambda: scene.verify(key, client_ip="127.0.0.1").get("owner_id") == "another", PROMPTLY)
    opened.speak()
