"""Turns and places: what is shared by projects on the loop, and what happens at its bounds."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import cast

import pytest

from tests.domain import PATIENCE
from tumbler_server.errors import Overloaded, StoreUnavailable
from tumbler_server.keys.record import Key
from tumbler_server.keys.verifier import Unknown
from tumbler_server.rpc import gathering
from tumbler_server.rpc.gathering import Gathering
from tumbler_server.rpc.lanes import FairQueue, Lane
from tumbler_server.rpc.presence import Presence
from tumbler_server.shares import CrowdLimit, LaneLimit


def play(scene: Awaitable[None]) -> None:
    """Play a scene on a loop of its own."""

    async def patiently() -> None:
        await asyncio.wait_for(scene, PATIENCE)

    asyncio.run(patiently())


async def settled() -> None:
    """Let all who can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def is_overloaded(call: "asyncio.Future[object]") -> bool:
    """Say whether a call was refused with a time to come back."""
    failure = call.exception() if call.done() else None
    return isinstance(failure, Overloaded) and failure.retry_after > 0


class TestFairQueue:
    """The queue in which parties take turns."""

    def test_turns(self) -> None:
        """Parties take turns, however much each has put in; the items of one keep their order."""
        queue: FairQueue[int] = FairQueue("test", 100, 100)
        for number in range(5):
            queue.put("many", number)
        for party in ("one", "two"):
            queue.put(party, 0)
        taken = [queue.take() for _ in range(7)]
        assert taken == [("many", 0), ("one", 0), ("two", 0), *(("many", number) for number in range(1, 5))]
        assert queue.take() is None
        assert len(queue) == 0

    def test_not_allowed(self) -> None:
        """A party that may not have one now is passed over, and keeps its turn."""
        queue: FairQueue[int] = FairQueue("test", 100, 100)
        for party in ("held", "free", "last"):
            queue.put(party, 1)
        assert queue.take(lambda party: party != "held") == ("free", 1)
        assert queue.take(lambda party: party == "nobody") is None
        assert queue.take() == ("held", 1)

    def test_bounds(self) -> None:
        """A party that has its share waiting is refused, and so is anybody where the queue is full."""
        queue: FairQueue[int] = FairQueue("test", 3, 2)
        queue.put("a", 1)
        queue.put("a", 2)
        with pytest.raises(Overloaded):
            queue.put("a", 3)
        queue.put("b", 1)
        with pytest.raises(Overloaded):
            queue.put("c", 1)
        assert len(queue) == 3
        queue.take()
        queue.put("c", 1)

    def test_drop(self) -> None:
        """What is dropped has its room back, once, and nothing stays of a party that has nothing left."""
        queue: FairQueue[int] = FairQueue("test", 1, 1)
        for _ in range(3):
            queue.put("a", 1)
            queue.drop("a", 1)
            queue.drop("a", 1)
        assert len(queue) == 0
        assert queue.take() is None


@pytest.fixture
def may_end() -> Iterator[threading.Event]:
    """Give what work waits for, so that it takes as long as a test wants."""
    may_end = threading.Event()
    yield may_end
    may_end.set()


class TestLane:
    """Work on threads behind the loop."""

    def test_places(self, may_end: threading.Event) -> None:
        """As many pieces of work go on at a time as there are places, of one party as its share says."""
        begun: list[str] = []
        lane = Lane(LaneLimit("test", 3, 2, 10, 10))

        def work(name: str) -> str:
            begun.append(name)
            assert may_end.wait(PATIENCE)
            return name

        async def scene() -> None:
            calls = [asyncio.ensure_future(lane.run("a", work, f"a{number}")) for number in range(4)]
            await settled()
            calls += [asyncio.ensure_future(lane.run("b", work, f"b{number}")) for number in range(2)]
            while len(begun) < 3:
                await asyncio.sleep(0.001)
            await settled()
            assert sorted(begun) == ["a0", "a1", "b0"]
            may_end.set()
            assert await asyncio.gather(*calls) == ["a0", "a1", "a2", "a3", "b0", "b1"]

        play(scene())
        lane.close()

    def test_bounded(self, may_end: threading.Event) -> None:
        """Beyond what may wait a call is refused at once; of one party earlier than of all."""
        lane = Lane(LaneLimit("test", 1, 1, 3, 2))

        async def scene() -> None:
            calls = [asyncio.ensure_future(lane.run("a", may_end.wait, PATIENCE)) for _ in range(3)]
            await settled()
            beyond = asyncio.ensure_future(lane.run("a", may_end.wait, PATIENCE))
            await settled()
            assert is_overloaded(beyond)
            calls.append(asyncio.ensure_future(lane.run("b", may_end.wait, PATIENCE)))
            await settled()
            beyond = asyncio.ensure_future(lane.run("c", may_end.wait, PATIENCE))
            await settled()
            assert is_overloaded(beyond)
            may_end.set()
            assert all(await asyncio.gather(*calls))

        play(scene())
        lane.close()

    def test_gone(self, may_end: threading.Event) -> None:
        """What nobody waits for any more is not begun; what has begun holds its place until it ends."""
        begun: list[str] = []
        lane = Lane(LaneLimit("test", 1, 1, 10, 10))

        def work(name: str) -> None:
            begun.append(name)
            assert may_end.wait(PATIENCE)

        async def scene() -> None:
            first = asyncio.ensure_future(lane.run("a", work, "first"))
            while not begun:
                await asyncio.sleep(0.001)
            waiting, last = (asyncio.ensure_future(lane.run("a", work, name)) for name in ("waiting", "last"))
            await settled()
            waiting.cancel()
            first.cancel()
            await settled()
            assert first.cancelled()
            assert begun == ["first"]
            may_end.set()
            await last

        play(scene())
        lane.close()
        assert begun == ["first", "last"]

    def test_failure(self) -> None:
        """Work that fails fails for its caller, and gives its place back."""
        lane = Lane(LaneLimit("test", 1, 1, 10, 10))

        def fail() -> None:
            raise StoreUnavailable

        async def scene() -> None:
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await lane.run("a", fail)
            assert await lane.run("a", lambda: 1) == 1

        play(scene())
        lane.close()

    def test_closed(self) -> None:
        """A lane that is closed takes nothing more, and says when to come again."""
        lane = Lane(LaneLimit("test", 1, 1, 10, 10))
        lane.close()

        async def scene() -> None:
            for _ in range(2):
                with pytest.raises(Overloaded):
                    await lane.run("a", lambda: 1)

        play(scene())


class TestPresence:
    """How many calls of a kind are in flight."""

    def test_counted(self) -> None:
        """A party has its share, all have theirs, and who leaves makes room."""
        present = Presence(CrowdLimit("test", 3, 2))
        leave = [present.enter("a"), present.enter("a")]
        with pytest.raises(Overloaded):
            present.enter("a")
        present.enter("b")
        with pytest.raises(Overloaded):
            present.enter("c")
        leave.pop()(None)
        present.enter("c")
        assert len(present) == 3


class TestGathering:
    """Records that are read together."""

    def test_one_query(self) -> None:
        """What is asked in one turn of the loop is read by one query, and each gets its own answer."""
        queries: list[int] = []

        def read(asked: Sequence[Unknown]) -> list[Key | None]:
            queries.append(len(asked))
            return [None if unknown.id == "3" else Key(id=unknown.id, project_id="acme") for unknown in asked]

        reads = Gathering(LaneLimit("test", 1, 1, 100, 100), cast("Callable[..., list[Key | None]]", read))

        async def scene() -> None:
            found = await asyncio.gather(*(reads.find(unknown(number), "a") for number in range(10)))
            ids = [record.id if isinstance(record, Key) else None for record in found]
            assert ids == [None if number == 3 else str(number) for number in range(10)]

        play(scene())
        reads.close()
        assert queries == [10]

    def test_the_next_query(self, may_end: threading.Event) -> None:
        """What is asked while a query is under way goes with the next one, in turns, and up to a bound."""
        queries: list[list[str]] = []

        def read(asked: Sequence[Unknown]) -> list[None]:
            queries.append([unknown.id for unknown in asked])
            assert may_end.wait(PATIENCE)
            return [None] * len(asked)

        reads = Gathering(LaneLimit("test", 1, 1, 1_000, 1_000), cast("Callable[..., list[Key | None]]", read))

        async def scene() -> None:
            calls = [asyncio.ensure_future(reads.find(unknown(0), "a"))]
            while not queries:
                await asyncio.sleep(0.001)
            calls += [asyncio.ensure_future(reads.find(unknown(number), "a")) for number in range(1, 101)]
            calls.append(asyncio.ensure_future(reads.find(unknown(999), "b")))
            await settled()
            gone = calls.pop(1)
            gone.cancel()
            await settled()
            may_end.set()
            await asyncio.gather(*calls)

        play(scene())
        reads.close()
        assert [len(query) for query in queries] == [1, gathering.MOST, 100 - gathering.MOST]
        assert queries[1][:3] == ["2", "999", "3"]  # nothing was read for who had gone

    def test_failure(self) -> None:
        """A query that fails fails for all whom it was for, and not for those who come later."""
        failures: list[Exception] = [StoreUnavailable()]

        def read(asked: Sequence[Unknown]) -> list[None]:
            if failures:
                raise failures.pop()
            return [None] * len(asked)

        reads = Gathering(LaneLimit("test", 1, 1, 10, 10), cast("Callable[..., list[Key | None]]", read))

        async def scene() -> None:
            calls = [reads.find(unknown(number), "a") for number in range(3)]
            for failure in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(failure, StoreUnavailable)
            assert await reads.find(unknown(4), "a") is None

        play(scene())
        reads.close()

    def test_bounded(self) -> None:
        """Beyond what may wait a caller is refused at once."""
        reads = Gathering(LaneLimit("test", 1, 1, 3, 2), lambda asked: [None] * len(asked))

        async def scene() -> None:
            calls = [asyncio.ensure_future(reads.find(unknown(number), party)) for number, party in enumerate("aaabc")]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(outcome, Overloaded) for outcome in outcomes] == [False, False, True, False, True]

        play(scene())
        reads.close()


def unknown(number: int) -> Unknown:
    """Return what asks for a record."""
    return Unknown(f"text {number}", str(number), b"", None)
