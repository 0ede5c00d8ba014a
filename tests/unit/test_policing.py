"""Connections that send without a pause, and so keep gRPC from reading others."""

import asyncio
import contextlib
import errno
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from tumbler_server import shares
from tumbler_server.rpc import policing
from tumbler_server.rpc.policing import SILENCE, Policing, Readers, Traffic
from tumbler_server.rpc.shedding import Shedding
from tumbler_server.rpc.sockets import End

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much a connection has received")

MUCH = bytes(int(shares.UNEXPLAINED_RATE.most))


class Line:
    """Both ends of a connection to a port of this process."""

    def __init__(self, server: socket.socket) -> None:
        self.peer = socket.create_connection(server.getsockname())
        self.ours = server.accept()[0]
        self.peer.settimeout(5)
        self.ours.settimeout(5)
        host, port = self.peer.getsockname()
        self.name = f"ipv4:{host}:{port}"

    def send(self, data: bytes) -> None:
        """Send data from the peer and receive it."""
        reading = threading.Thread(target=self._take, args=(len(data),))
        reading.start()
        self.peer.sendall(data)
        reading.join()

    def _take(self, rest: int) -> None:
        while rest:
            rest -= len(self.ours.recv(1 << 20))

    @property
    def is_heard(self) -> bool:
        """Whether data from the peer arrives."""
        self.peer.send(b"?")
        self.ours.settimeout(0.2)
        try:
            return self.ours.recv(1) == b"?"
        except TimeoutError:
            return False
        finally:
            self.ours.settimeout(5)

    def close(self) -> None:
        """Close both ends."""
        self.peer.close()
        self.ours.close()


class Street:
    """A port with its connections and the policing of them, on a frozen clock."""

    def __init__(self, server: socket.socket) -> None:
        self.shedding = Shedding()
        self.shedding.port = server.getsockname()[1]
        self.now = 1_000.0
        self.awaited: dict[str, int] = {}
        self.policing = Policing(self.shedding, lambda: self.awaited, lambda: self.now)
        self.lines = [Line(server) for _ in range(3)]

    def look(self, after: float = 0.01) -> int:
        """Look again after this many seconds, and return how many connections are silenced."""

        async def run() -> None:
            await self.policing.look()
            while self.shedding._cutting:
                await asyncio.sleep(0.01)

        self.now += after
        asyncio.run(run())
        return len(self.policing._silenced)


@pytest.fixture
def street() -> Iterator[Street]:
    """Yield a street with three connections that has been looked at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        made = Street(server)
        made.look()
        try:
            yield made
        finally:
            end(made)
            made.shedding.close()
            for line in made.lines:
                line.close()


def test_who_sends_without_end_is_heard_no_more(street: Street) -> None:
    """An unauthenticated connection that sent more than its limit since the last look is silenced; others are not."""
    loud, quiet, _ = street.lines
    loud.send(MUCH)
    quiet.send(bytes(1_000))
    assert street.look() == 1
    assert (loud.is_heard, quiet.is_heard) == (False, True)


def test_silenced_and_then_cut(street: Street) -> None:
    """A silenced connection is not told; after its time it is shut down."""
    loud, quiet, _ = street.lines
    loud.send(MUCH)
    street.look()
    loud.peer.setblocking(False)
    for _ in range(3):
        street.now += SILENCE / 4
        street.policing.cut()
        with pytest.raises(BlockingIOError):
            loud.peer.recv(1)
    loud.peer.settimeout(5)
    street.now += SILENCE
    street.policing.cut()
    assert loud.peer.recv(1) == b""
    assert quiet.is_heard


def test_cut_when_the_server_ends(street: Street) -> None:
    """The server's shutdown cuts silenced connections."""
    loud = street.lines[0]
    loud.send(MUCH)
    street.look()
    end(street)
    assert loud.peer.recv(1) == b""


@pytest.mark.parametrize("why", ["let in", "has a stream of changes"])
def test_who_was_let_in_is_spared(street: Street, why: str) -> None:
    """An authenticated connection, such as a proxy's, may send what its messages explain; others may not."""
    known, stranger, _ = street.lines
    if why == "let in":
        street.shedding.let_in(known.name)
        street.shedding.turn()
    else:
        street.shedding.stay(known.name)
    street.shedding.stay(stranger.name, stranger=True)
    street.shedding.heard = {line.name: len(MUCH) for line in (known, stranger)}
    for line in (known, stranger):
        line.send(MUCH)
    assert street.look() == 1
    assert (known.is_heard, stranger.is_heard) == (True, False)


@pytest.mark.parametrize(
    ("heard", "awaited", "cut"),
    [
        (0, 0, True),
        (len(MUCH), 0, False),  # received messages explain it
        (0, len(MUCH), False),  # a message in transit may explain it
        (len(MUCH) // 2, len(MUCH) // 8, True),
    ],
)
def test_what_messages_do_not_explain(street: Street, heard: int, awaited: int, cut: bool) -> None:
    """An authenticated connection is cut if its bytes exceed the messages received or awaited."""
    known, other, _ = street.lines
    street.shedding.let_in(known.name)
    known.send(MUCH)
    street.shedding.heard = {known.name: heard, other.name: 5}
    street.awaited = {known.name: awaited}
    assert street.look() == 0
    assert other.is_heard
    known.peer.settimeout(0.2)
    with contextlib.nullcontext() if cut else pytest.raises(TimeoutError):
        assert known.peer.recv(1) == b""


def test_a_message_that_ends_meanwhile(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is completed during the look still explains the bytes."""
    known = street.lines[0]
    street.shedding.let_in(known.name)
    known.send(MUCH)
    looked = Policing._look

    def look(self: Policing, heard: Mapping[End, int]) -> None:
        looked(self, heard)
        assert street.shedding.heard is not None
        street.shedding.heard[known.name] = len(MUCH)

    monkeypatch.setattr(Policing, "_look", look)
    street.look()
    assert known.is_heard


def test_no_file_may_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no file can be opened, the check continues to run: a flood must not stop it."""

    def fail(_: str) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(policing.os, "listdir", fail)
    readers = Readers()
    assert not readers.are_busy()
    assert not readers.are_busy()


def test_what_is_unexplained_adds_up(street: Street) -> None:
    """Unexplained bytes add up from look to look, minus the allowed rate."""
    known = street.lines[0]
    street.shedding.let_in(known.name)
    each = 500_000
    for _ in range(2):
        known.send(bytes(each))
        street.look()
    assert known.is_heard
    street.look(0.2)  # at the allowed rate, that time pays for all of it
    for _ in range(2):
        known.send(bytes(each))
        street.look()
    assert known.is_heard
    known.send(bytes(each))
    street.look()
    assert known.peer.recv(1) == b""


@pytest.mark.parametrize(
    ("size", "after", "silenced"),
    [
        (1 << 20, 0.01, 0),  # a hundred calls with the largest allowed headers
        ((1 << 20) + 50_000, 0.01, 1),
        (5 << 20, 1.0, 0),  # within a second it may be more
        ((5 << 20) + 50_000, 1.0, 1),
    ],
)
def test_how_much_may_be_sent(street: Street, size: int, after: float, silenced: int) -> None:
    """A connection's bytes since the last look count, minus the burst that a new connection may send."""
    street.lines[0].send(bytes(size))
    assert street.look(after) == silenced
    assert street.look(after) == silenced  # nothing more arrived


def test_strangers_share_what_they_may_send(street: Street) -> None:
    """Unauthenticated connections share one rate; one that sends little does not count toward it."""
    first, second, third = street.lines
    each = int(shares.UNEXPLAINED_RATE.most * 0.04)
    for _ in range(20):
        first.send(bytes(each))
        third.send(bytes(100))
        assert street.look(0.05) == 0
    silenced = 0
    for _ in range(20):
        for line in (first, second):
            if not silenced:
                line.send(bytes(each))
        silenced += street.look(0.05) if not silenced else 0
    assert silenced == 2
    assert third.is_heard


def test_who_is_let_in_meanwhile_is_no_stranger(street: Street) -> None:
    """What a connection sent before its caller was authenticated does not count later."""
    line = street.lines[0]
    line.send(bytes(900_000))
    assert street.look() == 0
    street.shedding.let_in(line.name)
    line.send(bytes(200_000))
    assert street.look() == 0
    assert line.is_heard


def test_a_newcomer_is_judged_from_its_beginning(street: Street) -> None:
    """For a connection that is new since the last look, all bytes count."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        other = Street(server)
        other.look()
        late = Line(server)
        late.send(MUCH)
        assert other.look() == 1
        end(other)
        other.shedding.close()
        for line in (late, *other.lines):
            line.close()


def test_another_connection_of_the_same_name_is_not_cut(street: Street) -> None:
    """If a silenced connection is gone, a new one with the same address and port is not cut."""
    loud, quiet, _ = street.lines
    loud.send(MUCH)
    street.look()
    host, port = quiet.peer.getsockname()
    street.policing._silenced = {(host, str(port)): street.now}
    street.now += SILENCE + 1
    street.policing.cut()
    assert quiet.is_heard


@pytest.mark.parametrize(
    ("used", "busy"),
    [
        ({1: 0.006}, True),
        ({1: 0.003, 2: 0.003}, True),
        ({1: 0.002, 2: 0.002}, False),
        ({}, False),
    ],
)
def test_when_grpc_is_busy(monkeypatch: pytest.MonkeyPatch, used: Mapping[int, float], busy: bool) -> None:
    """The threads of gRPC count as busy if together they used half a core since the last look."""
    clock = SimpleNamespace(now=1.0, used=dict.fromkeys(used, 1.0))
    monkeypatch.setattr(policing.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(policing.time, "process_time", lambda: clock.now)
    monkeypatch.setattr(policing.time, "clock_gettime", lambda thread: clock.used[thread])
    monkeypatch.setattr(policing, "_clocks", lambda: list(used))
    readers = Readers()
    assert not readers.are_busy()
    for thread, seconds in used.items():
        clock.used[thread] += seconds
    clock.now += 0.01
    assert readers.are_busy() is busy


@pytest.mark.parametrize(("spent", "pause"), [(0.0009, policing.CALM_LOOK), (0.0011, policing.LOOK)])
def test_an_idle_server_looks_seldom(monkeypatch: pytest.MonkeyPatch, spent: float, pause: float) -> None:
    """If the process used less than a tenth of a core since the last look, no thread's clock is read, and it rests."""
    clock = SimpleNamespace(now=1.0, spent=1.0)
    monkeypatch.setattr(policing.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(policing.time, "process_time", lambda: clock.spent)
    asked: list[int] = []
    monkeypatch.setattr(policing, "_clocks", lambda: asked.append(1) or [])
    readers = Readers()
    readers.are_busy()
    asked.clear()
    clock.now += 0.01 + policing._OLD
    clock.spent += spent * (clock.now - 1) / 0.01
    assert not readers.are_busy()
    assert (readers.pause, bool(asked)) == (pause, pause == policing.LOOK)


def test_a_thread_that_has_ended_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gRPC thread that has ended is skipped."""
    gone = ~(2**22) << 3 | 6  # higher than any thread id
    monkeypatch.setattr(policing, "_clocks", lambda: [gone])
    readers = Readers()
    assert not readers.are_busy()
    assert not readers.are_busy()


def test_threads_of_python_are_no_readers() -> None:
    """Python's own threads do not count as gRPC's, however busy they are."""
    assert ~threading.get_native_id() << 3 | 6 not in policing._clocks()


def test_how_much_comes(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes that reach the machine count, whatever they are for."""
    traffic = Traffic()
    assert traffic.may_be_much()  # there is no earlier value yet
    street.lines[0].send(MUCH)
    assert traffic.may_be_much()
    monkeypatch.setattr(policing, "_came", lambda: 0.0)
    traffic.may_be_much()
    assert not traffic.may_be_much()


def test_what_is_not_told_may_be_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system does not report its traffic, it always counts as possibly too much."""
    monkeypatch.setattr(policing, "_TRAFFIC", Path("/no/such/file"))
    traffic = Traffic()
    traffic.may_be_much()
    assert traffic.may_be_much()


@pytest.mark.parametrize(("busy", "much", "looks"), [(True, True, True), (True, False, False), (False, True, False)])
def test_looks_only_where_it_may_matter(
    street: Street, monkeypatch: pytest.MonkeyPatch, busy: bool, much: bool, looks: bool
) -> None:
    """Connections are only checked while gRPC is busy and traffic is high, because checking many takes long."""
    monkeypatch.setattr(Readers, "are_busy", lambda _: busy)
    monkeypatch.setattr(Traffic, "may_be_much", lambda _: much)
    looked: list[int] = []

    async def look(_: Policing) -> None:
        looked.append(1)

    monkeypatch.setattr(Policing, "look", look)
    asyncio.run(watch(street))
    assert bool(looked) is looks


def test_who_is_silenced_is_cut_in_calm_times_too(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silenced connection is cut on time even if gRPC is no longer busy."""
    monkeypatch.setattr(Readers, "are_busy", lambda _: False)
    loud = street.lines[0]
    loud.send(MUCH)
    street.look()
    street.now += SILENCE + 1
    asyncio.run(watch(street))
    assert loud.peer.recv(1) == b""


async def watch(street: Street) -> None:
    """Run the policing for a moment."""
    watching = asyncio.ensure_future(street.policing.watch())
    await asyncio.sleep(5 * policing.LOOK)
    watching.cancel()
    await asyncio.wait([watching])


def end(street: Street) -> None:
    """Start and stop the policing."""
    asyncio.run(watch(street))
