"""The event loop on gRPC's queue: what wakes it, what it survives, and what its failure reports."""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from grpc._cython import cygrpc

from tests.unit.test_lanes import PATIENCE
from tumbler_server.errors import SetupError
from tumbler_server.rpc import loop
from tumbler_server.rpc.loop import Loop, LoopThread

THREADS, RINGS = 8, 2_000


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    """Yield a running loop."""
    running = LoopThread()
    yield running
    running.close()


def test_other_threads_wake_it(thread: LoopThread) -> None:
    """Callbacks from other threads run, in the order of each thread, however many threads there are."""
    done: list[tuple[int, int]] = []

    def give(number: int) -> None:
        for count in range(RINGS):
            thread.loop.call_soon_threadsafe(done.append, (number, count))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(give, range(THREADS)))
    thread.run(asyncio.sleep(0))
    for number in range(THREADS):
        assert [count for giver, count in done if giver == number] == list(range(RINGS))


def test_it_is_woken_at_once(thread: LoopThread) -> None:
    """A callback from another thread wakes an idle loop at once."""
    began = time.monotonic()
    for _ in range(50):
        thread.run(asyncio.sleep(0))
    assert time.monotonic() - began < 5, "it was woken, and not waited for"


def test_it_keeps_time(thread: LoopThread) -> None:
    """Timers run on time and in order, and a cancelled one does not run."""

    async def wait() -> list[float]:
        loop, done = asyncio.get_running_loop(), list[float]()
        for seconds in (0.3, 0.02, 0.1):
            loop.call_later(seconds, done.append, seconds)
        loop.call_later(0.05, done.append, 0.05).cancel()
        began = loop.time()
        await asyncio.sleep(0.35)
        assert loop.time() - began >= 0.35
        return done

    assert thread.run(wait()) == [0.02, 0.1, 0.3]


def test_blocking_work_is_done_beside_it(thread: LoopThread) -> None:
    """The result of work on another thread arrives, and the loop continues meanwhile."""

    async def work() -> tuple[int, int]:
        turns, done = 0, asyncio.ensure_future(asyncio.to_thread(time.sleep, 0.1))
        while not done.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, threading.active_count()

    turns, _ = thread.run(work())
    assert turns > 10


def test_an_event_that_fails(thread: LoopThread) -> None:
    """If an event's callback raises, its type is logged, not its text, and the loop continues."""

    def fail(_: Any) -> None:
        raise ValueError("tmb_a_secret")

    with structlog.testing.capture_logs() as logs:
        thread.loop.call_soon_threadsafe(thread.loop._bell.start_server_batch, (), fail)
        deadline = time.monotonic() + PATIENCE
        while not logs and time.monotonic() < deadline:
            thread.run(asyncio.sleep(0.01))
    assert [(log["event"], log["error"]) for log in logs] == [("a task on the event loop failed", "ValueError")]
    assert "secret" not in str(logs)


def test_the_end_of_a_loop_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the loop itself fails, a callback reports it, and close does not hang."""
    failed = threading.Event()
    running = LoopThread(failed.set)
    monkeypatch.setattr(running.loop, "select", lambda _: 1 / 0)
    with contextlib.suppress(RuntimeError):
        running.loop.call_soon_threadsafe(int)
    assert failed.wait(PATIENCE)
    running.close()


@pytest.mark.parametrize(
    "name", ["CompletionQueue", "ReceiveMessageOperation", "SendStatusFromServerOperation", "Server"]
)
def test_another_version_of_grpc(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If gRPC's internals differ from those used, the server does not start, and the message names the remedy."""

    class Other:
        def __getattr__(self, asked: str) -> Any:
            if asked == name:
                raise AttributeError(asked)
            return getattr(cygrpc, asked)

    monkeypatch.setattr(loop, "cygrpc", Other())
    with pytest.raises(SetupError, match=r"grpcio .*: install an earlier version"):
        LoopThread()


class Events:
    """A fake queue of events, some of which make a callback runnable."""

    def __init__(self, turned: Loop) -> None:
        self._loop = turned
        self.waiting: deque[bool] = deque()
        self.asked = 0

    def poll(self, _: float) -> Any:
        self.asked += 1
        if not self.waiting:
            return SimpleNamespace(completion_type=cygrpc.CompletionType.queue_timeout)
        wakes = self.waiting.popleft()
        act = (lambda _: self._loop.call_soon(int)) if wakes else int
        return SimpleNamespace(completion_type=None, tag=lambda _: act(0))


@pytest.fixture
def events() -> Iterator[Events]:
    """Yield a loop's fake queue; ``select`` takes from it."""
    turned = Loop()
    own, made = turned.queue, Events(turned)
    turned.queue = made
    made.select = turned.select  # type: ignore[attr-defined]
    yield made
    turned.queue = own
    turned.close()


@pytest.mark.parametrize(("wakes", "taken"), [(True, loop.TURNS), (False, loop.EVENTS)])
def test_how_many_events_a_turn_takes(events: Any, wakes: bool, taken: int) -> None:
    """A turn takes few events that make a callback runnable, and thousands of those that do not."""
    events.waiting.extend([wakes] * 2_000)
    events.select(0)
    assert 2_000 - len(events.waiting) == taken


def test_an_event_alone(events: Any) -> None:
    """After an event has come alone, the loop does not look for a second one the next eight times."""
    asked = []
    for _ in range(12):
        events.waiting.append(True)
        before = events.asked
        events.select(0)
        asked.append(events.asked - before)
    assert asked == [2, *[1] * 8, 2, 1, 1]
