"""The threads that hand notices over."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.service import eventually
from tests.harness import FrozenClock
from tumbler_server.events.senders import FEWEST, MOST_STUCK, STUCK, Senders


class Listener:
    """Somebody who is served, and takes what is handed over at once, or not before ``hears`` is set."""

    def __init__(self, uptime: FrozenClock, hears: bool = True) -> None:
        self.since = 0
        self.served = 0
        self.hears = threading.Event()
        self._uptime = uptime
        if hears:
            self.hears.set()

    def serve(self) -> None:
        self.since = self._uptime()
        self.hears.wait()
        self.since = 0
        self.served += 1


@pytest.fixture
def uptime() -> FrozenClock:
    """Give the clock by which waiting is measured."""
    return FrozenClock(1)


@pytest.fixture
def senders(uptime: FrozenClock) -> Iterator[Senders[Listener]]:
    """Give threads that serve."""
    senders: Senders[Listener] = Senders(Listener.serve, uptime)
    senders.start()
    yield senders
    senders.close()


@pytest.fixture
def listeners(senders: Senders[Listener], uptime: FrozenClock) -> Iterator[Callable[..., list[Listener]]]:
    """Give a function that makes listeners; at the end all hear."""
    made: list[Listener] = []

    def make(count: int, hears: bool = True) -> list[Listener]:
        new = [Listener(uptime, hears) for _ in range(count)]
        made.extend(new)
        return new

    yield make
    for listener in made:
        listener.hears.set()


def running() -> int:
    """Return how many threads there are that serve."""
    return sum(thread.name == "watch-sender" for thread in threading.enumerate())


def test_everybody_is_served(senders: Senders[Listener], listeners: Callable[..., list[Listener]]) -> None:
    """Each is served as often as it was put, by a few threads."""
    crowd = listeners(500)
    for listener in crowd * 2:
        senders.put(listener)
    eventually(lambda: all(listener.served == 2 for listener in crowd))
    assert running() == FEWEST


def test_who_takes_too_long(
    senders: Senders[Listener], listeners: Callable[..., list[Listener]], uptime: FrozenClock
) -> None:
    """Who does not take what is handed over counts as stuck after a while, the longest first; who does, never."""
    (first,) = listeners(1, hears=False)
    senders.put(first)
    eventually(lambda: first.since)
    uptime.advance(STUCK // 2)
    (second,) = listeners(1, hears=False)
    senders.put(second)
    eventually(lambda: second.since)
    assert senders.stuck() == []
    uptime.advance(STUCK)
    assert senders.stuck() == [(STUCK + STUCK // 2, first), (STUCK, second)]
    first.hears.set()
    eventually(lambda: first.served)
    assert senders.stuck() == [(STUCK, second)]


def test_places_are_taken(
    senders: Senders[Listener], listeners: Callable[..., list[Listener]], uptime: FrozenClock
) -> None:
    """As many as may be stuck keep nobody else from being served; when they hear again, there are few threads again."""
    deaf, others = listeners(MOST_STUCK, hears=False), listeners(10)
    for listener in [*deaf, *others]:
        senders.put(listener)

    def served() -> bool:
        uptime.advance(STUCK)
        senders.stuck()
        return all(listener.served for listener in others)

    eventually(served)
    assert running() <= 2 * MOST_STUCK
    assert {listener for _, listener in senders.stuck()} == set(deaf)
    for listener in deaf:
        listener.hears.set()
    eventually(lambda: all(listener.served for listener in deaf))
    assert senders.stuck() == []

    def few() -> bool:
        senders.put(others[0])
        return running() <= FEWEST

    eventually(few)


def test_nothing_of_who_was_served_is_kept(senders: Senders[Listener], uptime: FrozenClock) -> None:
    """A thread that has nothing to do holds on to nobody."""
    left: list[weakref.ref[Listener]] = []

    def serve_some() -> None:
        some = [Listener(uptime) for _ in range(10 * FEWEST)]
        left.extend(weakref.ref(listener) for listener in some)
        for listener in some:
            senders.put(listener)
        eventually(lambda: all(listener.served for listener in some))

    serve_some()
    eventually(lambda: gc.collect() >= 0 and not any(listener() for listener in left))


def test_the_end(uptime: FrozenClock) -> None:
    """When they have been closed, no thread is left."""
    senders: Senders[Listener] = Senders(Listener.serve, uptime)
    senders.start()
    assert running() == FEWEST
    senders.close()
    assert running() == 0
