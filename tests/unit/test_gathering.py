"""Reads of records, gathered."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.unit.test_lanes import PATIENCE, soon, turns
from tumbler_server.errors import Overloaded, StoreUnavailable
from tumbler_server.keys.record import Key
from tumbler_server.keys.verifier import Unknown
from tumbler_server.rpc.gathering import MOST, Found, Gathering
from tumbler_server.shares import LaneLimit


def asking(name: str) -> Unknown:
    """Return what to ask about a key of this id."""
    return Unknown(f"text of {name}", name, name.encode(), None)


class Shelf:
    """Where records are read. ``held``: each read waits until it is let go. Ids that begin with "no" are not there."""

    def __init__(self, held: bool = False) -> None:
        self.reads: list[list[str]] = []
        self.failure: BaseException | None = None
        self.go = threading.Semaphore(0 if held else 1_000_000)

    def read(self, asked: Sequence[Unknown]) -> list[Found]:
        self.reads.append([unknown.id for unknown in asked])
        assert self.go.acquire(timeout=PATIENCE)
        if self.failure is not None:
            raise self.failure
        return [None if each.id.startswith("no") else Key(id=each.id, project_id="acme") for each in asked]


def gathered(
    test: Callable[[Gathering, Shelf], Awaitable[None]],
    shelf: Shelf,
    places: int = 1,
    waiting: int = 1_000,
    waiting_each: int = 1_000,
) -> None:
    """Run a test on a loop with a gathering of its own."""

    async def run() -> None:
        gathering = Gathering(LaneLimit("test", places, 1, waiting, waiting_each), shelf.read)
        try:
            await asyncio.wait_for(test(gathering, shelf), PATIENCE)
        finally:
            shelf.go.release(1_000)
            gathering.close()

    asyncio.run(run())


def ask(gathering: Gathering, names: Sequence[str], party: str = "p") -> "list[asyncio.Task[Found]]":
    """Begin to ask for keys of these ids."""
    return [asyncio.ensure_future(gathering.find(asking(name), party)) for name in names]


def ids(found: Sequence[Found]) -> list[str | None]:
    """Return the ids of what was found."""
    return [each.id if isinstance(each, Key) else None for each in found]


def test_together() -> None:
    """What is asked in one turn of the loop is one read, and each has its own answer."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        found = await asyncio.gather(*ask(gathering, ["a", "none", "b"]), *ask(gathering, ["c"], "q"))
        assert ids(found) == ["a", None, "b", "c"]
        assert [sorted(read) for read in shelf.reads] == [["a", "b", "c", "none"]]

    gathered(test, Shelf())


def test_with_the_next_one() -> None:
    """What comes while a read is under way goes with the next one, all together: that read began before they did."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        first = ask(gathering, ["a"])
        await soon(lambda: len(shelf.reads) == 1)
        later = [*ask(gathering, ["b"]), *ask(gathering, ["a"], "q")]
        await turns()
        later += ask(gathering, ["c"])
        await turns()
        assert len(shelf.reads) == 1
        shelf.go.release(2)
        assert ids(await asyncio.gather(*first, *later)) == ["a", "b", "a", "c"]
        assert [sorted(read) for read in shelf.reads] == [["a"], ["a", "b", "c"]]

    gathered(test, Shelf(held=True))


def test_as_many_reads_as_places() -> None:
    """There are as many reads at a time as places; a place that is free is used at once."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        asked = ask(gathering, ["a"])
        await soon(lambda: len(shelf.reads) == 1)
        asked += ask(gathering, ["b"])
        await soon(lambda: len(shelf.reads) == 2)
        asked += ask(gathering, ["c"])
        await turns()
        assert shelf.reads == [["a"], ["b"]]
        shelf.go.release(3)
        assert ids(await asyncio.gather(*asked)) == ["a", "b", "c"]

    gathered(test, Shelf(held=True), places=2)


def test_duplicates() -> None:
    """The same key, asked for by many, is answered to each of them."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        assert ids(await asyncio.gather(*ask(gathering, ["a"] * 5), *ask(gathering, ["a"] * 5, "q"))) == ["a"] * 10
        assert len(shelf.reads) == 1

    gathered(test, Shelf())


def test_turns_of_parties() -> None:
    """A read takes so many at the most, in turns by party: who asks for one is not behind who asks for hundreds."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        greedy = ask(gathering, [f"g{number}" for number in range(3 * MOST)], "greedy")
        modest = ask(gathering, ["m"], "modest")
        assert ids(await asyncio.gather(*modest)) == ["m"]
        assert len(shelf.reads[0]) == MOST
        assert "m" in shelf.reads[0]
        await asyncio.gather(*greedy)
        assert max(map(len, shelf.reads)) == MOST

    gathered(test, Shelf())


@pytest.mark.parametrize(
    ("failure", "told"),
    [(StoreUnavailable(), StoreUnavailable), (StopIteration(), RuntimeError), (SystemExit(), RuntimeError)],
)
def test_a_read_that_fails(failure: BaseException, told: type[Exception]) -> None:
    """A read that fails fails for all that it was for, whatever failed, and for nobody else."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        shelf.failure = failure
        failed = await asyncio.gather(*ask(gathering, ["a", "b"]), *ask(gathering, ["c"], "q"), return_exceptions=True)
        assert [type(each) for each in failed] == [told] * 3
        shelf.failure = None
        assert ids(await asyncio.gather(*ask(gathering, ["a"]))) == ["a"]

    gathered(test, Shelf())


def test_bounds_of_parties() -> None:
    """A party waits with so many at the most, all together with so many: beyond that one is refused, others go on."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        under_way = ask(gathering, ["a"])
        await soon(lambda: len(shelf.reads) == 1)
        waiting = ask(gathering, ["b", "c"])
        (refused,) = ask(gathering, ["d"])
        with pytest.raises(Overloaded) as raised:
            await refused
        assert raised.value.retry_after > 0
        waiting += ask(gathering, ["e"], "q")
        (refused,) = ask(gathering, ["f"], "r")
        with pytest.raises(Overloaded):
            await refused
        shelf.go.release(2)
        assert ids(await asyncio.gather(*under_way, *waiting)) == ["a", "b", "c", "e"]

    gathered(test, Shelf(held=True), waiting=3, waiting_each=2)


def test_gone() -> None:
    """Nothing is read for who leaves before its turn, and its room is another's; who leaves later disturbs nobody."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        first = ask(gathering, ["a", "b"])
        await soon(lambda: len(shelf.reads) == 1)
        gone = ask(gathering, ["gone"])
        await turns()
        gone[0].cancel()
        first[0].cancel()
        await turns()
        waiting = ask(gathering, ["c", "d"])  # as many of a party as may wait
        await turns()
        shelf.go.release(2)
        assert ids(await asyncio.gather(first[1], *waiting)) == ["b", "c", "d"]
        assert shelf.reads == [["a", "b"], ["c", "d"]]
        assert gone[0].cancelled()
        assert first[0].cancelled()

    gathered(test, Shelf(held=True), waiting=3)


def test_all_gone() -> None:
    """Where all have left before the read begins there is none, and the next one is served."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        for task in (gone := ask(gathering, ["a", "b"])):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        await turns()
        assert ids(await asyncio.gather(*ask(gathering, ["c"]))) == ["c"]
        assert ["c"] in shelf.reads

    gathered(test, Shelf())
