"""Fair shares of places and threads, on an event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest

from tumbler_server.errors import Overloaded
from tumbler_server.rpc import lanes
from tumbler_server.rpc.lanes import FairQueue, Lane, begun_threads, tellable
from tumbler_server.shares import LaneLimit

PATIENCE = 30.0
"""Seconds after which a wait has failed."""


async def soon(true: Callable[[], bool]) -> None:
    """Run the loop until a condition is true."""

    async def wait() -> None:
        while not true():
            await asyncio.sleep(0)

    await asyncio.wait_for(wait(), PATIENCE)


async def turns(number: int = 5) -> None:
    """Run the loop a few times: enough for everything that needs no outside event."""
    for _ in range(number):
        await asyncio.sleep(0)


class Bench:
    """A lane whose work blocks until released, and the work that has begun."""

    def __init__(self, places: int = 2, share: int = 1, waiting: int = 8, waiting_each: int = 4) -> None:
        self.lane = Lane(LaneLimit("test", places, share, waiting, waiting_each))
        self.begun: list[str] = []
        self.ends: dict[str, threading.Event] = {}

    def start(self, party: str, name: str) -> "asyncio.Task[str]":
        """Run work of this name for a party."""
        self.ends[name] = threading.Event()

        def work() -> str:
            self.begun.append(name)
            assert self.ends[name].wait(PATIENCE)
            return name

        return asyncio.ensure_future(self.lane.run(party, work))

    async def has_begun(self, *names: str) -> None:
        """Wait until exactly these have begun."""
        await soon(lambda: len(self.begun) >= len(names))
        await turns()
        assert sorted(self.begun) == sorted(names)

    def let_all_go(self) -> None:
        for end in self.ends.values():
            end.set()


def on_bench(test: Callable[[Bench], Awaitable[None]], **limits: int) -> None:
    """Run a test on a loop with its own lane."""

    async def run() -> None:
        bench = Bench(**limits)
        try:
            await asyncio.wait_for(test(bench), PATIENCE)
        finally:
            bench.let_all_go()
            bench.lane.close()

    asyncio.run(run())


class TestQueue:
    """A queue in which parties take turns."""

    def test_turns(self) -> None:
        """However much a party has queued, each other party has its turn after one of its items."""
        queue: FairQueue[int] = FairQueue("test", 100, 100)
        for number in range(4):
            queue.put("greedy", number)
        queue.put("modest", 10)
        queue.put("late", 20)
        taken = [queue.take() for _ in range(len(queue))]
        assert taken == [("greedy", 0), ("modest", 10), ("late", 20), ("greedy", 1), ("greedy", 2), ("greedy", 3)]
        assert queue.take() is None

    def test_passed_over(self) -> None:
        """A party that may not run now keeps its turn, and is the next one that may."""
        queue: FairQueue[int] = FairQueue("test", 100, 100)
        for party in ("first", "second", "third"):
            queue.put(party, 1)
        assert queue.take(lambda party: party != "first") == ("second", 1)
        assert queue.take(lambda _: False) is None
        assert queue.take() == ("first", 1)

    @pytest.mark.parametrize(
        ("put", "refused"),
        [
            (["a"] * 2, "a"),
            (["a", "a", "b"], "c"),
            (["a", "b", "c"], "d"),
        ],
        ids=["a party's share", "a newcomer to a full queue", "one of each"],
    )
    def test_bounds(self, put: list[str], refused: str) -> None:
        """If the queue is full or the party has its share of it, the item is refused with a retry delay."""
        queue: FairQueue[int] = FairQueue("test", 3, 2)
        for party in put:
            queue.put(party, 1)
        with pytest.raises(Overloaded) as raised:
            queue.put(refused, 1)
        assert raised.value.retry_after == lanes.RETRY > 0
        assert len(queue) == len(put)
        assert queue.take()
        queue.put(refused, 1)

    def test_dropped(self) -> None:
        """A dropped item frees its place, and dropping it twice has no further effect."""
        queue: FairQueue[int] = FairQueue("test", 1, 1)
        queue.put("a", 1)
        queue.drop("a", 2)
        assert len(queue) == 1
        queue.drop("a", 1)
        queue.drop("a", 1)
        assert len(queue) == 0
        queue.put("b", 2)
        assert queue.take() == ("b", 2)


class TestPlaces:
    """Who gets a place in a lane, and who waits."""

    def test_share(self) -> None:
        """A party gets at most its share of the places, however much it has queued; the rest is for others."""

        async def test(bench: Bench) -> None:
            for number in range(4):
                bench.start("greedy", f"g{number}")
            await bench.has_begun("g0")
            bench.start("modest", "m0")
            await bench.has_begun("g0", "m0")

        on_bench(test)

    def test_turns(self) -> None:
        """A free place goes to the party whose turn it is, not to the oldest item."""

        async def test(bench: Bench) -> None:
            for number in range(3):
                bench.start("greedy", f"g{number}")
            bench.start("modest", "m0")
            await bench.has_begun("g0")
            bench.ends["g0"].set()
            await bench.has_begun("g0", "g1")
            bench.ends["g1"].set()
            await bench.has_begun("g0", "g1", "m0")

        on_bench(test, places=1)

    def test_the_end_of_work(self) -> None:
        """The caller gets the work's result or its exception, and both free the place."""

        async def test(bench: Bench) -> None:
            lane = bench.lane
            assert await lane.run("a", lambda one, two: one + two, 1, 2) == 3
            for _ in range(3):
                with pytest.raises(ZeroDivisionError):
                    await lane.run("a", lambda: 1 / 0)
            assert await lane.run("a", threading.current_thread) is not threading.current_thread()

        on_bench(test, places=1, waiting=1)

    @pytest.mark.parametrize("failure", [StopIteration(), SystemExit(), KeyboardInterrupt(), asyncio.CancelledError()])
    def test_failures_that_a_future_does_not_take(self, failure: BaseException) -> None:
        """Exceptions that a future refuses, or that would end the loop, reach the caller as RuntimeError."""

        def fail() -> None:
            raise failure

        async def test(bench: Bench) -> None:
            for _ in range(2):
                with pytest.raises(RuntimeError, match=type(failure).__name__):
                    await bench.lane.run("a", fail)

        on_bench(test, places=1)
        assert str(tellable(StopIteration("text"))) == "the work ended with StopIteration"

    def test_overloaded(self) -> None:
        """A party that exceeds its places and its queue is refused at once; another is not."""

        async def test(bench: Bench) -> None:
            for number in range(3):
                bench.start("a", f"a{number}")
            await bench.has_begun("a0")
            with pytest.raises(Overloaded) as raised:
                await bench.start("a", "a3")
            assert raised.value.retry_after > 0
            bench.start("b", "b0")
            await bench.has_begun("a0", "b0")
            bench.start("b", "b1")
            await turns()
            with pytest.raises(Overloaded):  # the queue is full
                await bench.start("c", "c0")

        on_bench(test, waiting=3, waiting_each=2)

    def test_a_closed_lane(self) -> None:
        """A closed lane refuses work, and keeps no place taken."""

        async def test(bench: Bench) -> None:
            bench.lane.close()
            for _ in range(3):
                with pytest.raises(Overloaded):
                    await bench.lane.run("a", print)

        on_bench(test, places=1, waiting=1)


class TestGone:
    """Callers that have gone away."""

    def test_while_waiting(self) -> None:
        """Queued work whose caller has gone is dropped, and its place in the queue is free."""

        async def test(bench: Bench) -> None:
            bench.start("a", "a0")
            gone = bench.start("a", "a1")
            await bench.has_begun("a0")
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            bench.start("b", "b0")  # the queue has room for one
            await turns()
            bench.let_all_go()
            await bench.has_begun("a0", "b0")

        on_bench(test, places=1, waiting=1)

    def test_in_the_moment_of_its_turn(self) -> None:
        """A caller that is cancelled just as it gets its turn passes the turn on."""

        async def test(bench: Bench) -> None:
            lane = bench.lane
            await lane.enter("a")
            gone = asyncio.ensure_future(lane.enter("b"))
            after = asyncio.ensure_future(lane.enter("c"))
            await turns()
            lane.leave("a")  # b gets the turn, but has not run yet
            gone.cancel()
            await after
            with pytest.raises(asyncio.CancelledError):
                await gone
            lane.leave("c")
            await lane.enter("d")

        on_bench(test, places=1)

    def test_passed_over_at_its_turn(self) -> None:
        """A turn skips a caller that has just been cancelled."""

        async def test(bench: Bench) -> None:
            lane = bench.lane
            await lane.enter("a")
            gone = asyncio.ensure_future(lane.enter("b"))
            after = asyncio.ensure_future(lane.enter("c"))
            await turns()
            gone.cancel()
            lane.leave("a")
            await after

        on_bench(test, places=1)

    def test_while_running(self) -> None:
        """Running work keeps its place until it ends, even if its caller has gone."""

        async def test(bench: Bench) -> None:
            gone = bench.start("a", "a0")
            bench.start("b", "b0")
            await bench.has_begun("a0")
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            await bench.has_begun("a0")
            bench.ends["a0"].set()
            await bench.has_begun("a0", "b0")

        on_bench(test, places=1)

    def test_a_failure_that_nobody_waits_for(self) -> None:
        """An exception of work whose caller has gone is not logged."""
        complaints: list[dict[str, Any]] = []
        end = threading.Event()

        def fail() -> None:
            end.wait(PATIENCE)
            raise ZeroDivisionError

        async def test(bench: Bench) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            gone = asyncio.ensure_future(bench.lane.run("a", fail))
            await turns()
            gone.cancel()
            end.set()
            with contextlib.suppress(asyncio.CancelledError):
                await gone
            assert await bench.lane.run("a", lambda: True)

        on_bench(test, places=1)
        assert not complaints

    def test_a_loop_that_has_ended(self) -> None:
        """Work that outlives its loop ends silently."""
        lane = Lane(LaneLimit("test", 1, 1, 1, 1))
        begun, end, raised = threading.Event(), threading.Event(), []

        def work() -> None:
            begun.set()
            end.wait(PATIENCE)

        async def run() -> None:
            running = asyncio.ensure_future(lane.run("a", work))
            await turns()
            assert begun.wait(PATIENCE)
            running.cancel()

        before, threading.excepthook = threading.excepthook, raised.append
        try:
            asyncio.run(run())
            end.set()
            lane.close()
        finally:
            threading.excepthook = before
        assert not raised


def test_lanes_do_not_wait_for_each_other() -> None:
    """A Revoke runs at once even if another lane and its queue are full."""

    async def test(bench: Bench) -> None:
        stop = Lane(LaneLimit("stop", 1, 1, 1, 1))
        for number in range(3):
            bench.start("acme", f"create {number}")
        with pytest.raises(Overloaded):
            await bench.start("acme", "one more")
        await bench.has_begun("create 0")
        assert await stop.run("acme", lambda: "revoked") == "revoked"
        stop.close()

    on_bench(test, places=1, waiting=2, waiting_each=2)


class TestThreads:
    """The threads of a lane."""

    def test_run_from_the_beginning(self) -> None:
        """All threads of a pool run before its first use."""
        pool = begun_threads(3, "begun")
        assert sum(thread.name.startswith("begun") for thread in threading.enumerate()) == 3
        pool.shutdown()

    def test_none_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a thread cannot be started, creating the pool fails, and the threads already started end."""
        start = threading.Thread.start
        left = [2]

        def start_or_not(thread: threading.Thread) -> None:
            if thread.name.startswith("scarce"):
                left[0] -= 1
                if left[0] < 0:
                    raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_not)
        with pytest.raises(RuntimeError, match="start new thread"):
            begun_threads(3, "scarce")
        for thread in threading.enumerate():
            if thread.name.startswith("scarce"):
                thread.join(PATIENCE)
                assert not thread.is_alive()

    def test_context(self) -> None:
        """Work runs in its caller's context."""
        variable: ContextVar[str] = ContextVar("variable", default="")

        async def test(bench: Bench) -> None:
            variable.set("here")
            assert await bench.lane.run("a", variable.get) == "here"

        on_bench(test)
