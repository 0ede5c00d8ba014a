"""What callers pay who are not let in."""

import asyncio
import socket
from collections.abc import Collection, Coroutine
from contextlib import closing
from typing import Any

import pytest

from tumbler_server import shares
from tumbler_server.rpc import shedding
from tumbler_server.rpc.shedding import End, Shedding, shut_down

PROMPT = shares.PROMPT_REFUSALS.most


@pytest.fixture(autouse=True)
def cut(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[End]]]:
    """Give what is shut down, which nothing is."""
    done: list[tuple[int, set[End]]] = []

    def note(port: int, ends: Collection[End]) -> int:
        done.append((port, set(ends)))
        return len(ends)

    monkeypatch.setattr(shedding, "shut_down", note)
    return done


async def is_late(refusal: Coroutine[Any, Any, None]) -> bool:
    """Say whether a refusal has to wait; it is given up then."""
    task = asyncio.ensure_future(refusal)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late = not task.done()
    task.cancel()
    await asyncio.sleep(0)
    return late


async def late(shed: Shedding, peers: Collection[str]) -> list[bool]:
    """Refuse calls from these, one after another, and say of each whether it had to wait."""
    return [await is_late(shed.refuse(peer)) for peer in peers]


def test_few_are_refused_at_once() -> None:
    """The first hundred refusals of an address come at once, whatever its connections; those after them late."""

    async def run() -> None:
        shed = Shedding()
        ports = [f"ipv4:192.0.2.1:{port}" for port in range(PROMPT)]
        assert not any(await late(shed, ports))
        assert await late(shed, ["ipv4:192.0.2.1:9", "ipv4:192.0.2.1:9999"]) == [True, True]
        assert await late(shed, ["ipv4:192.0.2.2:9", "ipv6:%5B2001:db8::1%5D:9"]) == [False, False]

    asyncio.run(run())


def test_forgotten_after_a_while() -> None:
    """After a window an address begins anew."""

    async def run() -> None:
        shed = Shedding()
        peer = "ipv4:192.0.2.1:9"
        assert any(await late(shed, [peer] * (PROMPT + 1)))
        shed.turn()
        assert not any(await late(shed, [peer] * PROMPT))

    asyncio.run(run())


def test_who_was_let_in_is_refused_at_once(cut: list[tuple[int, set[End]]]) -> None:
    """A connection on which somebody was let in is exempt for two windows; others of its address are not."""

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
    """Where as many wait as may, others are refused at once; there is room again when they have been told."""
    monkeypatch.setattr(shedding, "DELAY", (0.03, 0.05))
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
    """Of more addresses and connections than may be kept, the new ones have to wait, and are not exempt."""
    monkeypatch.setattr(shedding, "MOST", 3)

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
    """Whoever waits to be told is told when the server stops, and nobody begins to wait."""

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
    """Connections to be cut are cut by one look through the sockets, off the loop, each once."""

    async def run() -> None:
        shed = Shedding()
        shed.port = 50051
        for _ in range(2):
            shed.cut("ipv4:192.0.2.1:9")
            shed.cut("ipv4:192.0.2.1:10")
        await asyncio.sleep(0.05)
        assert cut == [(50051, {("192.0.2.1", "9"), ("192.0.2.1", "10")})]
        shed.cut("ipv4:192.0.2.1:11")
        await asyncio.sleep(0.05)
        assert len(cut) == 2
        shed.close()

    asyncio.run(run())


def test_room_for_others(monkeypatch: pytest.MonkeyPatch, cut: list[tuple[int, set[End]]]) -> None:
    """Where connections are many, strangers that stay are cut; newcomers, and who was let in, are not."""
    here: list[End] = []
    monkeypatch.setattr(shedding, "connections", lambda _: iter([(end, None) for end in here]))

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
        assert await look(shed, 1, 2, 3) == []
        assert await look(shed, 1, 2, 4) == [{"2"}]
        assert await look(shed, 1, 4) == []  # there is room
        assert await look(shed, 1, 4, 5) == []
        shed.let_in("ipv4:192.0.2.1:5")
        assert await look(shed, 1, 4, 5) == [{"4"}]
        shed.close()

    asyncio.run(run())


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
    """Of all sockets of the process, the one is shut down that this peer has to this port; each stays open to us."""
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
