"""Late refusals and cut connections for unauthenticated callers."""

import asyncio
import errno
import socket
from collections.abc import Collection, Coroutine
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tumbler_server import shares
from tumbler_server.errors import ClaimTokenInvalid, Overloaded, StoreUnavailable, Unauthenticated
from tumbler_server.keys.record import Key
from tumbler_server.rpc import auth, shedding, sockets
from tumbler_server.rpc.exchange import Exchange
from tumbler_server.rpc.shedding import HURRIED, LOOKS, Shedding, shut_down
from tumbler_server.rpc.sockets import End

PROMPT = shares.PROMPT_REFUSALS.most


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[End]]]:
    """Record what would be shut down, instead of shutting it down."""
    done: list[tuple[int, set[End]]] = []

    def note(port: int, ends: Collection[End]) -> int:
        done.append((port, set(ends)))
        return len(ends)

    monkeypatch.setattr(shedding, "shut_down", note)
    return done


async def is_late(refusal: Coroutine[Any, Any, None]) -> bool:
    """Return whether a refusal is delayed, and cancel it."""
    task = asyncio.ensure_future(refusal)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = not task.done()
    task.cancel()
    await asyncio.sleep(0)
    return late


async def late(shed: Shedding, peers: Collection[str]) -> list[bool]:
    """Refuse a call from each peer in turn, and return which were delayed."""
    return [await is_late(shed.refuse(peer)) for peer in peers]


def test_few_are_refused_at_once() -> None:
    """An address's first hundred refusals come at once, over all its connections; later ones are delayed."""

    async def run() -> None:
        shed = Shedding()
        ports = [f"ipv4:192.0.2.1:{port}" for port in range(PROMPT)]
        assert not any(await late(shed, ports))
        assert await late(shed, ["ipv4:192.0.2.1:9", "ipv4:192.0.2.1:9999"]) == [True, True]
        assert await late(shed, ["ipv4:192.0.2.2:9", "ipv6:%5B2001:db8::1%5D:9"]) == [False, False]

    asyncio.run(run())


def test_an_address_of_ipv6_is_its_network() -> None:
    """Addresses in one IPv6 /64 count as one, and IPv4-mapped addresses count as IPv4."""

    async def run() -> None:
        shed = Shedding()
        peers = [f"ipv6:%5B2001:db8:0:1::{number:x}%5D:9" for number in range(1, PROMPT + 1)]
        assert not any(await late(shed, peers))
        assert await late(shed, ["ipv6:%5B2001:db8:0:1:ffff::1%5D:9", "ipv6:%5B2001:db8:0:2::1%5D:9"]) == [True, False]
        mapped = [f"ipv6:%5B::ffff:192.0.2.{number}%5D:9" for number in (1, 2)]
        assert not any(await late(shed, [mapped[0]] * PROMPT))
        assert await late(shed, [*mapped, "ipv4:192.0.2.1:9"]) == [True, False, True]

    asyncio.run(run())


def test_forgotten_after_a_while() -> None:
    """After a window an address starts again from zero."""

    async def run() -> None:
        shed = Shedding()
        peer = "ipv4:192.0.2.1:9"
        assert any(await late(shed, [peer] * (PROMPT + 1)))
        shed.turn()
        assert not any(await late(shed, [peer] * PROMPT))

    asyncio.run(run())


def test_who_was_let_in_is_refused_at_once(cut: list[tuple[int, set[End]]]) -> None:
    """A connection with an authenticated caller is exempt for two windows; others of its address are not."""

    async def run() -> None:
        shed = Shedding()
        proxy, other = "ipv4:192.0.2.1:9", "ipv4:192.0.2.1:10"
        shed.let_in(proxy)
        await late(shed, [other] * PROMPT)
        for _ in range(2):
            assert await late(shed, [proxy] * (PROMPT + 1)) == [False] * (PROMPT + 1)
            shed.cut(proxy)
            shed.turn()
        assert any(await late(shed, [proxy] * (PROMPT + 1)))
        await asyncio.sleep(0.05)
        assert not cut

    asyncio.run(run())


def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the maximum number of refusals is waiting, others are refused at once until there is room again."""
    monkeypatch.setattr(shedding, "DELAY", (0.5, 0.6))
    monkeypatch.setattr(shares, "LATE_REFUSALS", shares.LATE_REFUSALS.__class__("late", 2, "calls", ""))

    async def run() -> None:
        shed = Shedding()
        peer = "ipv4:192.0.2.1:9"
        await late(shed, [peer] * PROMPT)
        waiting = [asyncio.ensure_future(shed.refuse(peer)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await late(shed, [peer]) == [False]
        assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        assert await late(shed, [peer]) == [True]

    asyncio.run(run())


def test_bounded_in_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses beyond the maximum are delayed, and connections beyond the maximum are not exempt."""
    monkeypatch.setattr(shedding, "MOST", 3)
    monkeypatch.setattr(shedding, "_MOST_LET_IN", 3)

    async def run() -> None:
        shed = Shedding()
        known = [f"ipv4:192.0.2.{host}:1" for host in range(3)]
        assert not any(await late(shed, known))
        assert await late(shed, ["ipv4:192.0.2.9:1", known[0]]) == [True, False]
        for host in range(10):
            shed.let_in(f"ipv4:198.51.100.{host}:1")
        assert await late(shed, ["ipv4:198.51.100.0:1", "ipv4:198.51.100.9:1"]) == [False, True]

    asyncio.run(run())


def test_nobody_waits_when_the_server_stops() -> None:
    """When the server stops, waiting refusals are answered, and none is delayed any more."""

    async def run() -> None:
        shed = Shedding()
        peer = "ipv4:192.0.2.1:9"
        await late(shed, [peer] * PROMPT)
        waiting = asyncio.ensure_future(shed.refuse(peer))
        await asyncio.sleep(0)
        shed.say_goodbye()
        await asyncio.wait_for(waiting, 1)
        assert await late(shed, [peer]) == [False]

    asyncio.run(run())


def test_cut_together(cut: list[tuple[int, set[End]]]) -> None:
    """Connections are cut in batches, off the loop, each once."""

    async def looked(times: int) -> None:
        while len(cut) < times:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # another batch would have come by then
        assert len(cut) == times

    async def run() -> None:
        shed = Shedding()
        shed.port = 50051
        for _ in range(2):
            shed.cut("ipv4:192.0.2.1:9")
            shed.cut("ipv4:192.0.2.1:10")
        await looked(1)
        assert cut == [(50051, {("192.0.2.1", "9"), ("192.0.2.1", "10")})]
        shed.cut("ipv4:192.0.2.1:11")
        await looked(2)
        shed.close()

    asyncio.run(run())


def test_room_for_others(monkeypatch: pytest.MonkeyPatch, cut: list[tuple[int, set[End]]]) -> None:
    """If many places are taken, unauthenticated connections that stay are cut; new ones and streams are not."""
    here: list[End] = []
    monkeypatch.setattr(sockets, "connections", lambda _: iter([(end, 0) for end in here]))

    async def look(shed: Shedding, *ports: int) -> list[set[str]]:
        here[:] = [("192.0.2.1", str(port)) for port in ports]
        await shed.make_room()
        await asyncio.sleep(0.05)
        told = [{port for _, port in ends} for _, ends in cut]
        cut.clear()
        return told

    async def run() -> None:
        shed = Shedding()
        shed.most = 8
        shed.let_in("ipv4:192.0.2.1:1")
        leave = [shed.stay("ipv4:192.0.2.1:8", stranger=stranger) for stranger in (True, False)]
        for _ in range(shedding.LOOKS - 1):
            assert await look(shed, 1, 2, 8) == []
        assert await look(shed, 1, 2, 3, 8) == [{"2"}]
        assert await look(shed, 1, 3) == []  # there is room, so counting starts again
        for _ in range(shedding.LOOKS - 1):
            assert await look(shed, 1, 3, 8) == []
        leave.pop()(None)
        shed.let_in("ipv4:192.0.2.1:3")
        assert await look(shed, 1, 3, 8) == []
        leave.pop()(None)
        for _ in range(shedding.LOOKS - 1):
            assert await look(shed, 1, 3, 8) == []
        assert await look(shed, 1, 3, 8) == [{"8"}]
        shed.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("failure", "caller", "held_back"),
    [
        (Unauthenticated(), auth.NOBODY, True),
        (Unauthenticated(), Key(id="revoked meanwhile", project_id="any"), False),
        (StoreUnavailable(), auth.NOBODY, False),
        (Overloaded(retry_after=1), auth.NOBODY, False),
        (ClaimTokenInvalid(), auth.NOBODY, True),  # so its place goes to another caller meanwhile
    ],
)
def test_who_is_held_back(failure: Exception, caller: Key, held_back: bool) -> None:
    """Only unauthenticated callers are delayed, and never for a failure of the database or the server."""
    refused: list[str] = []

    async def refuse(peer: str) -> None:
        refused.append(peer)

    house = SimpleNamespace(shedding=SimpleNamespace(refuse=refuse))
    call = Exchange(cast("Any", house), cast("Any", None))
    call.caller = caller
    asyncio.run(call.hold_back(failure, SimpleNamespace(peer=lambda: "ipv4:192.0.2.1:9")))
    assert bool(refused) == held_back


def test_a_strangers_stream_exempts_from_nothing_else(cut: list[tuple[int, set[End]]]) -> None:
    """A stream that needs no key, such as a health watch, does not exempt its connection."""

    async def run() -> None:
        shed, peer = Shedding(), "ipv4:192.0.2.1:9"
        shed.stay(peer, stranger=True)
        assert (await late(shed, [peer] * (PROMPT + 1)))[-1]
        shed.cut(peer)
        await asyncio.sleep(0.05)
        assert cut == [(0, {("192.0.2.1", "9")})]

    asyncio.run(run())


def test_cut_whoever_it_is() -> None:
    """`whoever` cuts a connection at once, even an authenticated one, and drops its unread data."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer, other = (socket.create_connection(server.getsockname()) for _ in range(2))
        ours, theirs = server.accept()[0], server.accept()[0]
        with peer, other, ours, theirs:
            host, port = peer.getsockname()
            shed = Shedding()
            shed.port = server.getsockname()[1]
            shed.let_in(f"ipv4:{host}:{port}")
            for each in (peer, other):
                each.sendall(b"what has come")
            shed.cut(f"ipv4:{host}:{port}", whoever=True)
            ours.settimeout(5)
            assert ours.recv(100) == b""
            assert theirs.recv(100) == b"what has come"
            shed.close()


def test_the_fuller_the_shorter_the_patience(monkeypatch: pytest.MonkeyPatch, cut: list[tuple[int, set[End]]]) -> None:
    """Above half of all places, unauthenticated connections are cut sooner; above three quarters, at once."""
    ends = [("192.0.2.1", str(port)) for port in range(6)]

    async def run(most: int) -> int:
        shed = Shedding()
        shed.most = most
        monkeypatch.setattr(shed, "_look", lambda: ends)
        looks = 0
        while not cut:
            await shed.make_room()
            await asyncio.sleep(0.05)
            looks += 1
        cut.clear()
        return looks

    assert asyncio.run(run(12)) == LOOKS
    assert asyncio.run(run(11)) == HURRIED
    assert asyncio.run(run(8)) == HURRIED
    assert asyncio.run(run(7)) == 1


def test_no_file_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process can open no more files, no connections are found, and nothing fails."""

    def fail(_: str) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(sockets.os, "listdir", fail)
    assert list(sockets.connections(50051)) == []
    asyncio.run(Shedding().make_room())


@pytest.mark.parametrize(
    ("family", "listen", "connect"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
    ids=["IPv4", "IPv6", "IPv4 in IPv6"],
)
def test_shut_down(family: socket.AddressFamily, listen: str, connect: str) -> None:
    """Only this peer's socket at this port is shut down, and its descriptor stays open."""
    try:
        server = socket.create_server((listen, 0), family=family, dualstack_ipv6=listen == "::")
    except OSError:
        pytest.skip("there is no IPv6 here")
    with closing(server):
        port = server.getsockname()[1]
        peers = [socket.create_connection((connect, port)) for _ in range(2)]
        ends = [server.accept()[0] for _ in peers]
        for each in (*peers, *ends):
            each.settimeout(5)
        first = (connect, str(peers[0].getsockname()[1]))
        assert shut_down(port + 1, [first]) == 0
        assert shut_down(port, [first]) == 1
        assert peers[0].recv(1) == b""
        assert ends[0].fileno() >= 0
        peers[1].sendall(b"x")
        assert ends[1].recv(1) == b"x"
        for each in (*peers, *ends):
            each.close()
        assert shut_down(port, [first]) == 0
