"""The loop that waits for gRPC: what wakes it, what it survives, and what is noticed where it does not."""

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
    """Give a loop that runs."""
    running = LoopThread()
    yield running
    running.close()


def test_other_threads_wake_it(thread: LoopThread) -> None:
    """Whatever other threads give it is done, in each one's order, however many do so at the same time."""
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
    """Who asks an idle loop does not wait until it looks up by itself."""
    began = time.monotonic()
    for _ in range(50):
        thread.run(asyncio.sleep(0))
    assert time.monotonic() - began < 5, "it was woken, and not waited for"


def test_it_keeps_time(thread: LoopThread) -> None:
    """What is to be done later is done then, in the order of its times, and what was called off is not."""

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
    """Work on other threads comes back, and the loop goes on meanwhile."""

    async def work() -> tuple[int, int]:
        turns, done = 0, asyncio.ensure_future(asyncio.to_thread(time.sleep, 0.1))
        while not done.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, threading.active_count()

    turns, _ = thread.run(work())
    assert turns > 10


def test_an_event_that_fails(thread: LoopThread) -> None:
    """Should what an event calls fail, its type is logged and never its text, and the loop goes on."""

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
    """Should the loop itself fail, that is told, and to close it does not wait for it."""
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
    """Where gRPC has not what is used of it, or has it otherwise, the server says so, and does not start."""

    class Other:
        def __getattr__(self, asked: str) -> Any:
            if asked == name:
                raise AttributeError(asked)
            return getattr(cygrpc, asked)

    monkeypatch.setattr(loop, "cygrpc", Other())
    with pytest.raises(SetupError, match=r"grpcio .*: install an earlier version"):
        LoopThread()


class Events:
    """A queue in which so many events of each kind have come: those that make something runnable, and the others."""

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
    """Give a loop's queue of events; ``select`` takes from it."""
    turned = Loop()
    own, made = turned.queue, Events(turned)
    turned.queue = made
    made.select = turned.select  # type: ignore[attr-defined]
    yield made
    turned.queue = own
    turned.close()


@pytest.mark.parametrize(("wakes", "taken"), [(True, loop.TURNS), (False, loop.EVENTS)])
def test_how_many_events_a_turn_takes(events: Any, wakes: bool, taken: int) -> None:
    """What is made runnable has its turn soon; notes of callers who have gone are taken by the thousand."""
    events.waiting.extend([wakes] * 2_000)
    events.select(0)
    assert 2_000 - len(events.waiting) == taken


def test_an_event_alone(events: Any) -> None:
    """Once an event has come alone, it is not asked for a second one each time, and soon again."""
    asked = []
    for _ in range(12):
        events.waiting.append(True)
        before = events.asked
        events.select(0)
        asked.append(events.asked - before)
    assert asked == [2, *[1] * 8, 2, 1, 1]
