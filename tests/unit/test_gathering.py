"""Reads of records, combined."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from tests.unit.test_lanes import PATIENCE, soon, turns
from tumbler_server.errors import Overloaded, StoreUnavailable
from tumbler_server.keys.record import Key
from tumbler_server.rpc.gathering import MOST, Found, Gathering
from tumbler_server.shares import LaneLimit
from tumbler_server.verify.verifier import Unknown


def asking(name: str) -> Unknown:
    """Return what to ask for a key with this id."""
    return Unknown(f"text of {name}", name, name.encode(), None)


class Shelf:
    """A fake reader of records. ``held``: each read blocks until released. Ids that start with "no" do not exist."""

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
    """Run a test on a loop with its own gathering."""

    async def run() -> None:
        gathering = Gathering(LaneLimit("test", places, 1, waiting, waiting_each), shelf.read)
        try:
            await asyncio.wait_for(test(gathering, shelf), PATIENCE)
        finally:
            shelf.go.release(1_000)
            gathering.close()

    asyncio.run(run())


def ask(gathering: Gathering, names: Sequence[str], party: str = "p") -> "list[asyncio.Task[Found]]":
    """Start to ask for keys with these ids."""
    return [asyncio.ensure_future(gathering.find(asking(name), party)) for name in names]


def ids(found: Sequence[Found]) -> list[str | None]:
    """Return the ids of the records found."""
    return [each.id if isinstance(each, Key) else None for each in found]


def test_together() -> None:
    """Requests in one turn of the loop share one read, and each gets its own answer."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        found = await asyncio.gather(*ask(gathering, ["a", "none", "b"]), *ask(gathering, ["c"], "q"))
        assert ids(found) == ["a", None, "b", "c"]
        assert [sorted(read) for read in shelf.reads] == [["a", "b", "c", "none"]]

    gathered(test, Shelf())


def test_with_the_next_one() -> None:
    """Requests that arrive during a read share the next one, because that read began before them."""

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
    """At most as many reads run as there are places, and a free place is used at once."""

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
    """Each of several requests for the same key is answered."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        assert ids(await asyncio.gather(*ask(gathering, ["a"] * 5), *ask(gathering, ["a"] * 5, "q"))) == ["a"] * 10
        assert len(shelf.reads) == 1

    gathered(test, Shelf())


def test_turns_of_parties() -> None:
    """A read has at most MOST keys, by turns of the parties: one request does not wait behind hundreds of another's."""

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
    """A failed read fails for all its requests, whatever was raised, and for no others."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        shelf.failure = failure
        failed = await asyncio.gather(*ask(gathering, ["a", "b"]), *ask(gathering, ["c"], "q"), return_exceptions=True)
        assert [type(each) for each in failed] == [told] * 3
        assert len(set(map(id, failed))) == 3  # each has its own
        shelf.failure = None
        assert ids(await asyncio.gather(*ask(gathering, ["a"]))) == ["a"]

    gathered(test, Shelf())


def test_the_threads_have_ended() -> None:
    """A request that arrives after the end is refused, and does not wait forever."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        gathering.close()
        failed = await asyncio.gather(*ask(gathering, ["a", "b"]), return_exceptions=True)
        assert [type(each) for each in failed] == [Overloaded] * 2
        assert not shelf.reads

    gathered(test, Shelf())


def test_bounds_of_parties() -> None:
    """A party's requests above its share of the queue, or above the whole queue, are refused; others continue."""

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
    """A cancelled request that is still queued is not read and frees its place; a later one disturbs no other."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        first = ask(gathering, ["a", "b"])
        await soon(lambda: len(shelf.reads) == 1)
        gone = ask(gathering, ["gone"])
        await turns()
        gone[0].cancel()
        first[0].cancel()
        await turns()
        waiting = ask(gathering, ["c", "d"])  # as many as the party may queue
        await turns()
        shelf.go.release(2)
        assert ids(await asyncio.gather(first[1], *waiting)) == ["b", "c", "d"]
        assert shelf.reads == [["a", "b"], ["c", "d"]]
        assert gone[0].cancelled()
        assert first[0].cancelled()

    gathered(test, Shelf(held=True), waiting=3)


def test_all_gone() -> None:
    """If all requests are cancelled before the read begins, the next request is still served."""

    async def test(gathering: Gathering, shelf: Shelf) -> None:
        for task in (gone := ask(gathering, ["a", "b"])):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        await turns()
        assert ids(await asyncio.gather(*ask(gathering, ["c"]))) == ["c"]
        assert ["c"] in shelf.reads

    gathered(test, Shelf())
