"""Watch streams without gRPC. Time stands still unless a test advances it; the loop and the threads are real."""

import asyncio
import functools
import gc
import itertools
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import REGISTRY

from tests.domain import OPERATOR, Domain
from tests.harness import FrozenClock
from tests.unit.test_tail import restore
from tumbler_server.clock import DAY, HOUR, NEVER, SECOND
from tumbler_server.defaults import MAX_STALENESS
from tumbler_server.errors import Overloaded, ReaderTooSlow, ServerStopping, StoreUnavailable, Unauthenticated
from tumbler_server.events.retention import Retention
from tumbler_server.events.ring import Ring
from tumbler_server.secrets.opaque_tokens import Point
from tumbler_server.store.database import Store, open_store
from tumbler_server.streams.feed import Notice
from tumbler_server.streams.hub import FRESH, MOST_LAG, PATIENCE, TURN, Hub
from tumbler_server.streams.stream import Phase, Stream

BEAT = 5 * SECOND
KEY_ID = "0" * 16
WAIT = 30.0


async def eventually(happened: Callable[[], Any]) -> Any:
    """Return the first true value that ``happened`` returns, calling it repeatedly while the loop runs."""
    deadline = time.monotonic() + WAIT
    while not (value := happened()):
        assert time.monotonic() < deadline, f"it did not happen within {WAIT} s; the last answer was {value!r}"
        await asyncio.sleep(0.002)
    return value


class Ear:
    """A subscriber that records what it receives. While it is deaf it takes nothing, and its stream waits."""

    def __init__(self, ears: "Ears", deaf: bool = False, tenant: str = "tumbler", key_id: str = KEY_ID) -> None:
        self.tenant = tenant
        self.key_id = key_id
        self.heard: list[Notice] = []
        self.ages: list[int] = []
        self.ended: Exception | None = None
        self.spoken_to = False
        self.until = NEVER
        self.read_times = 0
        self.judged = 0
        self.refusal: Exception | None = None
        self.then: Callable[[], object] = lambda: None
        self.hears = asyncio.Event()
        self._ears = ears
        self._task: asyncio.Task[None] | None = None
        if not deaf:
            self.hears.set()

    def listen(self, project_id: str = "", start: int | Point | None = None, interval: int = BEAT) -> "Ear":
        """Open a stream."""
        self._task = asyncio.ensure_future(self._listen(project_id, interval, start))
        return self

    async def _listen(self, project_id: str, interval: int, start: int | Point | None) -> None:
        try:
            point = Point(start) if isinstance(start, int) else start
            await self._ears.hub.serve(self, project_id, self.until, interval, point)
        except Exception as failure:
            self.ended = failure

    def leave(self) -> None:
        """Cancel the stream, as a client does."""
        assert self._task
        self._task.cancel()

    @property
    def cancelled(self) -> bool:
        """Return whether the stream ended by being cancelled."""
        return self._task is not None and self._task.cancelled()

    def render(self, notice: Notice) -> bytes:
        self._ears.rendered.append(notice)
        return str(len(self._ears.rendered) - 1).encode()

    def date(self, age: int) -> bytes:
        return f" {age}".encode()

    async def write(self, message: bytes, /) -> None:
        self.spoken_to = True
        await self.hears.wait()
        number, *age = map(int, message.split())
        self.heard.append(self._ears.rendered[number])
        self.ages += age
        self.then()

    def read(self) -> int:
        self.read_times += 1
        return self.until

    def judge(self, read: int | None = None) -> int:
        self.judged += read is not None
        if self.refusal:
            raise self.refusal
        return self.until

    @property
    def revisions(self) -> list[int]:
        """Return the revisions of the events received, in order."""
        return [event.revision for notice in self.heard for event in notice.events]

    @property
    def beats(self) -> list[int]:
        """Return the cursors of the heartbeats."""
        return [notice.cursor for notice in self.heard if not (notice.events or notice.reset)]

    @property
    def resets(self) -> list[int]:
        """Return the cursors of the resets."""
        return [notice.cursor for notice in self.heard if notice.reset]


class Ears:
    """Makes subscribers for one hub, of up to ``most`` streams."""

    def __init__(self, domain: Domain, monotonic: FrozenClock, most: int = 300) -> None:
        self.rendered: list[Notice] = []
        self.threads = ThreadPoolExecutor(2)
        self.hub = Hub(domain.store, domain.tail, domain.clock, most, MAX_STALENESS, monotonic, self.threads)

    def __call__(self, **how: Any) -> Ear:
        return Ear(self, **how)

    async def __aenter__(self) -> "Ears":
        self.hub.start(asyncio.get_running_loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hub.close()
        self.threads.shutdown()


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on an event loop, together with the hub of its subscribers."""

    @functools.wraps(test)
    def run(*given: Any, **fixtures: Any) -> None:
        async def whole() -> None:
            async with fixtures["ear"]:
                await test(*given, **fixtures)

        asyncio.run(whole())

    return run


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every use of the database fail."""

    def fail(*_: Any) -> Any:
        raise StoreUnavailable

    for name in ("read", "select", "write_serialized", "version"):
        monkeypatch.setattr(Store, name, fail)


def open_streams() -> float:
    """Return the number of open streams in the metrics."""
    return REGISTRY.get_sample_value("tumbler_watch_streams") or 0.0


@pytest.fixture
def monotonic(domain: Domain) -> FrozenClock:
    """Return the clock that times heartbeats, the age of positions, and slow readers."""
    domain.monotonic.advance(HOUR)
    domain.tail.catch_up()
    return domain.monotonic


@pytest.fixture
def ear(domain: Domain, monotonic: FrozenClock) -> Ears:
    """Return a function that makes a subscriber."""
    return Ears(domain, monotonic)


@pytest.fixture
def other(database_url: str, store: Store) -> Iterator[Domain]:
    """Yield a domain that acts as another server on the same database."""
    theirs = open_store(database_url)
    domain = Domain(theirs, FrozenClock())
    yield domain
    domain.close()
    theirs.close()


class TestBeginning:
    """Where a stream begins."""

    @on_loop
    async def test_now(self, domain: Domain, ear: Ears) -> None:
        """The first message arrives at once and names where the stream begins: after everything that has happened."""
        domain.create()
        new = ear().listen()
        await eventually(lambda: new.beats == [1])
        domain.create()
        await eventually(lambda: new.revisions == [2])

    @on_loop
    async def test_after_a_revision(self, domain: Domain, ear: Ears) -> None:
        """A stream that starts after a revision gets the events it missed, and then at once a heartbeat."""
        for _ in range(4):
            domain.create()
        late = ear().listen(start=1)
        await eventually(lambda: late.beats == [4])
        assert late.revisions == [2, 3, 4]
        assert late.resets == []

    @on_loop
    async def test_what_memory_has_forgotten(self, domain: Domain, ear: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
        """Events that have left memory are read from the log, however many pages that takes."""
        monkeypatch.setattr("tumbler_server.streams.feed.MOST_EVENTS", 3)
        for number in range(11):
            domain.create(project_id=("acme", "globex")[number % 2])
        domain.tail.ring = Ring(domain.tail.position)
        every, ours = ear().listen(start=1), ear().listen("acme", start=1)
        await eventually(lambda: (every.beats, ours.beats) == ([11], [11]))
        assert every.revisions == list(range(2, 12))
        assert ours.revisions == [3, 5, 7, 9, 11]
        domain.create()
        await eventually(lambda: (every.revisions[-1], ours.revisions[-1]) == (12, 12))

    @on_loop
    async def test_what_is_not_kept(self, domain: Domain, ear: Ears) -> None:
        """A stream that starts where events have been removed is reset, and continues from the present."""
        for _ in range(3):
            domain.create()
        domain.clock.advance(2 * DAY)
        domain.create()
        Retention(domain.store, domain.clock, DAY).remove()
        domain.tail.ring = Ring(domain.tail.position)
        late = ear().listen(start=2)
        await eventually(lambda: late.beats == [4])
        assert (late.resets, late.revisions) == ([4], [])
        kept = ear().listen(start=3)
        await eventually(lambda: kept.beats == [4])
        assert (kept.resets, kept.revisions) == ([], [4])

    @on_loop
    async def test_beyond_the_end(self, domain: Domain, ear: Ears) -> None:
        """A stream that starts after a revision that does not exist is reset: a backup was restored."""
        domain.create()
        lost = ear().listen(start=2)
        await eventually(lambda: lost.beats == [1])
        assert lost.resets == [1]
        domain.create()
        await eventually(lambda: lost.revisions == [2])

    def test_another_history(self, domain: Domain, monotonic: FrozenClock) -> None:
        """A stream that starts at a change which a backup has undone is reset, however long the log is by now."""
        for _ in range(3):
            domain.create()
        kept, lost = (Point(revision, domain.tail.lineage.mark(revision)) for revision in (1, 2))
        restore(domain.store, 1)
        grown = Domain(domain.store, domain.clock)
        for _ in range(3):
            grown.create()
        grown.close()
        restored = Domain(domain.store, domain.clock)  # it started later, so it must read what it compares with

        async def listen() -> None:
            async with Ears(restored, monotonic) as ear:
                again, anew = ear().listen(start=kept), ear().listen(start=lost)
                await eventually(lambda: (again.beats, anew.beats) == ([4], [4]))
                assert (again.resets, again.revisions) == ([], [2, 3, 4])
                assert (anew.resets, anew.revisions) == ([4], [])

        asyncio.run(listen())
        restored.close()

    @on_loop
    async def test_a_key_that_has_changed(self, ear: Ears) -> None:
        """The subscriber's key is judged by its row as read after the stream was opened."""
        refused = ear()
        refused.refusal = Unauthenticated()
        refused.listen()
        await eventually(lambda: refused.ended)
        assert (refused.ended, refused.read_times, refused.heard) == (refused.refusal, 1, [])
        assert len(ear.hub) == 0

    @on_loop
    async def test_opened_while_another_begins(
        self, domain: Domain, other: Domain, ear: Ears, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A database answer to a question asked before a stream was opened does not confirm that stream's position."""
        confirm, asked, answer = domain.tail.confirm, threading.Event(), threading.Event()

        def confirm_slowly() -> int:
            position = confirm()
            asked.set()
            answer.wait(WAIT)
            return position

        monkeypatch.setattr(domain.tail, "confirm", confirm_slowly)
        early = ear().listen()
        await eventually(asked.is_set)
        other.create()
        late = ear(key_id="1" * 16).listen()
        await eventually(lambda: late.judged)  # now it waits, together with the early one
        answer.set()
        await eventually(lambda: early.beats and late.beats)
        assert late.heard[0].cursor == 1

    @on_loop
    async def test_without_a_database(self, ear: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the database does not answer, no stream begins, because its position is unknown.

        Streams that wait for the same read each have a failure of their own.
        """
        away(monkeypatch)
        refused, other = ear().listen(), ear().listen()
        await eventually(lambda: refused.ended and other.ended)
        assert isinstance(refused.ended, StoreUnavailable)
        assert isinstance(other.ended, StoreUnavailable)
        assert refused.ended is not other.ended
        assert refused.heard == other.heard == []
        monkeypatch.undo()

    @on_loop
    async def test_without_threads(self, ear: Ears) -> None:
        """While the server stops, its threads may end before the streams do: a stream is told that it stops."""
        ear.threads.shutdown()
        refused = ear().listen()
        await eventually(lambda: refused.ended)
        assert isinstance(refused.ended, ServerStopping)


class TestChanges:
    """Which subscribers get which events."""

    @on_loop
    async def test_everybody_everything(self, domain: Domain, ear: Ears) -> None:
        """With many writers, every subscriber gets each change once, in commit order, even one that begins later."""
        subscribers = [ear().listen() for _ in range(20)]
        await eventually(lambda: all(subscriber.beats for subscriber in subscribers))

        def write(_: int) -> None:
            domain.revoke(domain.create().key.id)

        with ThreadPoolExecutor(4) as pool:
            writing = [asyncio.get_running_loop().run_in_executor(pool, write, number) for number in range(30)]
            await eventually(lambda: domain.tail.position >= 10)
            late = [ear().listen(start=start) for start in (0, 3, None)]
            await asyncio.gather(*writing)
        await eventually(lambda: all(subscriber.revisions[-1:] == [60] for subscriber in [*subscribers, *late]))
        assert all(subscriber.revisions == list(range(1, 61)) for subscriber in subscribers)
        assert (late[0].revisions, late[1].revisions) == (list(range(1, 61)), list(range(4, 61)))
        (begin, *_) = late[2].revisions
        assert begin > 10
        assert late[2].revisions == list(range(begin, 61))

    @on_loop
    async def test_one_project(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """A subscriber to one project gets no other project's events; its cursor advances with the next heartbeat."""
        ours, theirs, every = ear().listen("acme"), ear().listen("globex"), ear().listen()
        await eventually(lambda: all(subscriber.beats for subscriber in (ours, theirs, every)))
        for number in range(10):
            domain.create(project_id=("acme", "globex", "globex")[number % 3])
        await eventually(lambda: every.revisions == list(range(1, 11)))
        await eventually(lambda: ours.revisions == [1, 4, 7, 10])
        await eventually(lambda: theirs.revisions == [2, 3, 5, 6, 8, 9])
        assert {event.project_id for notice in theirs.heard for event in notice.events} == {"globex"}
        monotonic.advance(BEAT)
        await eventually(lambda: theirs.beats[-1] == 10)

    @on_loop
    async def test_after_others_silence(self, domain: Domain, ear: Ears) -> None:
        """A project that is silent for long misses nothing, even if memory no longer reaches back that far."""
        domain.tail.ring = Ring(domain.tail.position, size=3)
        quiet = ear().listen("acme", interval=HOUR)
        await eventually(lambda: quiet.beats == [0])
        for _ in range(10):
            domain.create(project_id="globex")
        domain.create()
        await eventually(lambda: quiet.revisions == [11])
        assert quiet.ended is None

    @pytest.mark.parametrize("seed", range(3))
    @on_loop
    async def test_broken_streams(self, domain: Domain, ear: Ears, seed: int) -> None:
        """Wherever a stream breaks, a new one from the last cursor seen misses nothing and repeats nothing."""
        chance = random.Random(seed)  # noqa: S311 - no secret
        seen: list[int] = []
        cursor = 0
        with ThreadPoolExecutor(2) as pool:
            writing = [pool.submit(domain.create, project_id=chance.choice(["acme", "globex"])) for _ in range(60)]
            while seen[-1:] != [60]:
                subscriber, enough = ear().listen(start=cursor), chance.randrange(1, 4)
                await eventually(
                    lambda subscriber=subscriber, enough=enough: (
                        len(subscriber.heard) >= enough or (subscriber.beats and all(w.done() for w in writing))
                    )
                )
                subscriber.leave()
                # Only some of the sent messages arrived.
                arrived = subscriber.heard[: chance.randrange(len(subscriber.heard) + 1)]
                seen += [event.revision for notice in arrived for event in notice.events]
                cursor = arrived[-1].cursor if arrived else cursor
        assert seen == list(range(1, 61))

    @on_loop
    async def test_a_restored_backup(
        self, domain: Domain, ear: Ears, monotonic: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When the log goes back, no stream gets anything more: the server exits, and the streams end with it."""
        for _ in range(5):
            domain.create()
        subscribers = [ear().listen(interval=SECOND), ear().listen("acme"), ear().listen("globex")]
        await eventually(lambda: all(subscriber.beats for subscriber in subscribers))
        beats = [len(subscriber.beats) for subscriber in subscribers]
        restore(domain.store, 2)
        with pytest.raises(StoreUnavailable):
            domain.tail.catch_up()
        asked: list[int] = []
        confirm = domain.tail.confirm

        def ask() -> int:
            asked.append(1)
            return confirm()

        monkeypatch.setattr(domain.tail, "confirm", ask)
        monotonic.advance(10 * SECOND)
        await eventually(lambda: len(asked) >= 3)
        assert [len(subscriber.beats) for subscriber in subscribers] == beats
        assert not any(subscriber.resets or subscriber.revisions for subscriber in subscribers)


class TestHeartbeats:
    """A heartbeat promises that every event so far has been delivered."""

    @on_loop
    async def test_every_interval(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """Each interval has one heartbeat, whether or not events were sent in it."""
        often, rarely = ear().listen(interval=SECOND), ear().listen(interval=BEAT)
        for number in range(1, 6):
            await eventually(lambda number=number: len(often.beats) == number)
            if number % 2:
                domain.create()
                await eventually(lambda: often.revisions[-1:] == [domain.tail.position])
            monotonic.advance(SECOND)
        await eventually(lambda: len(often.beats) == 6)
        await eventually(lambda: len(rarely.beats) == 2)
        assert often.beats[-1] == 3

    @on_loop
    async def test_spread(self, ear: Ears, monotonic: FrozenClock) -> None:
        """The heartbeats of streams that were opened together are spread over the interval."""
        subscribers = [ear().listen() for _ in range(100)]

        def beaten() -> int:
            return sum(len(subscriber.beats) > 1 for subscriber in subscribers)

        await eventually(lambda: all(subscriber.beats for subscriber in subscribers))
        monotonic.advance(BEAT // 2)
        await eventually(lambda: beaten() > 20)
        probe = ear().listen()
        await eventually(lambda: probe.beats)
        assert beaten() < 80
        monotonic.advance(BEAT // 2)
        await eventually(lambda: beaten() == 100)

    @on_loop
    async def test_none_without_a_database(
        self, domain: Domain, ear: Ears, monotonic: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No heartbeat is sent while the database is away; once it is back, all due ones are sent and streams go on."""
        subscribers = [ear().listen(interval=SECOND) for _ in range(10)]
        await eventually(lambda: all(len(subscriber.beats) == 1 for subscriber in subscribers))
        asked: list[int] = []
        with monkeypatch.context() as patched:
            away(patched)
            confirm = domain.tail.confirm

            def ask() -> int:
                asked.append(1)
                return confirm()

            patched.setattr(domain.tail, "confirm", ask)
            monotonic.advance(10 * SECOND)
            await eventually(lambda: len(asked) >= 3)
            assert all(len(subscriber.beats) == 1 for subscriber in subscribers)
        monotonic.advance(SECOND)
        await eventually(lambda: all(len(subscriber.beats) >= 2 for subscriber in subscribers))
        domain.create()
        await eventually(lambda: all(subscriber.revisions == [1] for subscriber in subscribers))
        assert [subscriber.ended for subscriber in subscribers] == [None] * 10

    @on_loop
    async def test_a_turn_that_comes_late(
        self, domain: Domain, ear: Ears, monotonic: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A heartbeat that falls due during a slow write is sent only if the position is still fresh."""
        slow, other = ear().listen(interval=SECOND), ear().listen(interval=SECOND)
        await eventually(lambda: slow.beats and other.beats)
        slow.hears.clear()
        slow.spoken_to = False
        domain.create()
        await eventually(lambda: slow.spoken_to)
        monotonic.advance(SECOND)
        await eventually(lambda: len(other.beats) == 2)  # so the slow subscriber's heartbeat is due, too
        asked: list[int] = []
        with monkeypatch.context() as patched:
            away(patched)

            def ask() -> int:
                asked.append(len(slow.beats))
                raise StoreUnavailable

            patched.setattr(domain.tail, "confirm", ask)
            monotonic.advance(FRESH + 1)
            slow.hears.set()
            await eventually(lambda: slow.revisions == [1])
            asked.clear()
            await eventually(lambda: len(asked) >= 3)
            assert len(slow.beats) == 1
        await eventually(lambda: len(slow.beats) == 2)

    @on_loop
    async def test_as_of_now(self, ear: Ears, other: Domain, monotonic: FrozenClock) -> None:
        """A heartbeat is sent only after the events that others committed until just before have been sent."""
        subscriber = ear().listen()
        await eventually(lambda: subscriber.beats == [0])
        other.create()  # no notification has woken this process
        monotonic.advance(FRESH + 1)
        monotonic.advance(BEAT)
        await eventually(lambda: len(subscriber.beats) == 2)
        assert subscriber.beats == [0, 1]
        assert subscriber.revisions == [1]

    @on_loop
    async def test_its_age(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """A heartbeat's age is that of its stream when the position was confirmed, not when it is sent."""
        monotonic.advance(SECOND)
        subscriber = ear().listen()
        await eventually(lambda: subscriber.ages == [0])
        monotonic.advance(BEAT - FRESH // 2)
        domain.tail.confirm()
        monotonic.advance(FRESH // 2)
        await eventually(lambda: len(subscriber.ages) == 2)
        assert subscriber.ages[1] == BEAT - FRESH // 2
        domain.create()
        await eventually(lambda: subscriber.revisions == [1])
        assert len(subscriber.ages) == 2  # only a heartbeat has an age


class TestTheListenersKey:
    """The subscriber's key must stay accepted for the whole life of the stream."""

    @on_loop
    async def test_its_key_changes(self, domain: Domain, ear: Ears) -> None:
        """Each change of the subscriber's own key makes the hub judge it again, whatever project the stream is for."""
        theirs = domain.create(project_id="tumbler").key
        subscriber, other = ear(key_id=theirs.id).listen("globex"), ear().listen("globex")
        await eventually(lambda: subscriber.beats and other.beats)
        before = subscriber.read_times
        domain.lifecycle.set_active(OPERATOR, theirs.id, False)
        await eventually(lambda: subscriber.read_times > before)
        assert subscriber.ended is None  # the hub leaves this decision to the subscriber
        subscriber.refusal = Unauthenticated()
        domain.revoke(theirs.id)
        await eventually(lambda: subscriber.ended is subscriber.refusal)
        assert (other.read_times, other.ended) == (1, None)

    @on_loop
    async def test_its_key_expires(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """When the subscriber's key expires, the stream ends, long before the next heartbeat."""
        subscriber = ear()
        subscriber.until = domain.clock() + BEAT
        subscriber.listen(interval=HOUR)
        await eventually(lambda: subscriber.beats)
        subscriber.refusal = Unauthenticated()
        domain.clock.advance(BEAT)
        monotonic.advance(BEAT)
        await eventually(lambda: subscriber.ended is subscriber.refusal)

    @on_loop
    async def test_its_key_is_given_an_end(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """A stream also ends if its key was given an end after the stream was opened."""
        theirs = domain.create().key
        subscriber = ear(key_id=theirs.id).listen("globex", interval=HOUR)
        await eventually(lambda: subscriber.beats)
        subscriber.until = domain.clock() + BEAT
        domain.rotate(theirs.id)
        await eventually(lambda: len(subscriber.beats) == 2)  # its interval starts again
        subscriber.refusal = Unauthenticated()
        domain.clock.advance(BEAT)
        monotonic.advance(BEAT)
        await eventually(lambda: subscriber.ended is subscriber.refusal)

    @on_loop
    async def test_one_key_of_many(self, domain: Domain, ear: Ears) -> None:
        """A key is read once for all of its streams that wait for it, and judged for each of them."""
        theirs = domain.create().key
        subscribers = [ear(key_id=theirs.id).listen() for _ in range(50)]
        await eventually(lambda: all(subscriber.beats for subscriber in subscribers))
        assert sum(subscriber.read_times for subscriber in subscribers) < 10
        for subscriber in subscribers[10:]:
            subscriber.refusal = Unauthenticated()
        domain.lifecycle.set_active(OPERATOR, theirs.id, False)
        await eventually(lambda: all(subscriber.ended for subscriber in subscribers[10:]))
        assert sum(subscriber.read_times for subscriber in subscribers) < 20
        await eventually(lambda: all(subscriber.revisions == [2] for subscriber in subscribers[:10]))

    @on_loop
    async def test_what_was_read_before(self, domain: Domain, ear: Ears) -> None:
        """A row read before the key changed does not count for streams that wait for the key after the change."""
        theirs = domain.create().key
        early, late = ear(key_id=theirs.id), ear(key_id=theirs.id)
        asked, answer = threading.Event(), threading.Event()

        def read() -> int:
            asked.set()
            answer.wait(WAIT)
            return NEVER

        early.read = read  # type: ignore[method-assign]
        early.listen()
        await eventually(asked.is_set)
        domain.lifecycle.set_active(OPERATOR, theirs.id, False)
        await asyncio.sleep(0)
        late.listen()
        await eventually(lambda: late.beats)
        assert (late.read_times, early.heard) == (1, [])
        answer.set()
        await eventually(lambda: early.beats)


class TestSlowListeners:
    """A slow subscriber delays no other subscriber and costs little."""

    @on_loop
    async def test_others_go_on(self, domain: Domain, ear: Ears) -> None:
        """Listeners get every change, however many others are deaf."""
        deaf = [ear(deaf=True).listen() for _ in range(200)]
        others = [ear().listen() for _ in range(10)]
        await eventually(lambda: all(subscriber.beats for subscriber in others))
        for _ in range(3):
            domain.create()
        await eventually(lambda: all(subscriber.revisions == [1, 2, 3] for subscriber in others))
        assert all(subscriber.spoken_to and not subscriber.heard for subscriber in deaf)

    @on_loop
    async def test_ended(self, ear: Ears, monotonic: FrozenClock) -> None:
        """A subscriber that takes nothing for five seconds is ended as too slow."""
        deaf, other = ear(deaf=True).listen(), ear().listen()
        await eventually(lambda: deaf.spoken_to and other.beats)
        monotonic.advance(PATIENCE)
        await eventually(lambda: len(other.beats) >= 2)
        assert deaf.ended is None
        monotonic.advance(1)
        await eventually(lambda: isinstance(deaf.ended, ReaderTooSlow))
        assert (other.ended, len(ear.hub)) == (None, 1)

    @on_loop
    async def test_each_notice_has_its_time(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """A subscriber that takes nearly five seconds for each notice is not too slow for the next."""
        slow = ear().listen()
        await eventually(lambda: slow.beats)
        for number in range(1, 4):
            slow.hears.clear()
            slow.spoken_to = False
            domain.create()
            await eventually(lambda: slow.spoken_to)
            monotonic.advance(PATIENCE)
            slow.hears.set()
            await eventually(lambda number=number: slow.revisions[-1:] == [number])
        assert slow.ended is None

    @on_loop
    async def test_left_behind(self, domain: Domain, ear: Ears) -> None:
        """A subscriber that was up to date and then falls further behind than memory reaches is ended as too slow."""
        domain.tail.ring = Ring(domain.tail.position, size=3)
        slow = ear().listen()
        await eventually(lambda: slow.beats)
        slow.hears.clear()
        slow.spoken_to = False
        domain.create()
        await eventually(lambda: slow.spoken_to)
        for _ in range(4):
            domain.create()
        slow.hears.set()
        await eventually(lambda: isinstance(slow.ended, ReaderTooSlow))

    @on_loop
    async def test_always_behind(
        self, domain: Domain, ear: Ears, monotonic: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A subscriber that reads steadily but never catches up is ended after thirty seconds."""
        monkeypatch.setattr("tumbler_server.streams.feed.MOST_EVENTS", 1)
        slow = ear().listen()
        await eventually(lambda: slow.beats)

        def dawdle() -> None:
            domain.create()
            domain.create()
            monotonic.advance(PATIENCE)

        slow.then = dawdle
        domain.create()
        await eventually(lambda: isinstance(slow.ended, ReaderTooSlow))
        assert len(slow.revisions) == MOST_LAG // PATIENCE + 2

    @on_loop
    async def test_the_loop_is_not_held(self, domain: Domain, ear: Ears) -> None:
        """One pass of the loop serves at most TURN streams, however many have something to send."""
        subscribers = [ear().listen() for _ in range(200)]
        await eventually(lambda: all(subscriber.beats for subscriber in subscribers))
        told: list[int] = []
        domain.create()
        while not told or told[-1] < 200:
            await asyncio.sleep(0)
            told.append(sum(bool(subscriber.revisions) for subscriber in subscribers))
        assert max(later - earlier for earlier, later in itertools.pairwise(told)) <= TURN

    @on_loop
    async def test_one_rendering(self, domain: Domain, ear: Ears, monotonic: FrozenClock) -> None:
        """A notice for many subscribers is rendered once, also a heartbeat, whatever project they listen to."""
        subscribers = [ear().listen(f"project-{number % 50}" if number % 2 else "") for number in range(100)]
        await eventually(lambda: all(subscriber.beats for subscriber in subscribers))
        assert len(ear.rendered) == 1
        domain.create()
        await eventually(lambda: all(subscriber.revisions for subscriber in subscribers[::2]))
        assert len(ear.rendered) == 2
        monotonic.advance(FRESH // 2)
        domain.tail.confirm()
        monotonic.advance(BEAT)
        await eventually(lambda: all(len(subscriber.beats) == 2 for subscriber in subscribers))
        assert len(ear.rendered) == 3

    @on_loop
    async def test_a_broken_line(self, domain: Domain, ear: Ears) -> None:
        """An error while serving one subscriber ends that stream and no other."""
        broken, other = ear(), ear()

        def fail() -> None:
            raise KeyError

        broken.then = fail
        broken.listen()
        other.listen()
        await eventually(lambda: isinstance(broken.ended, KeyError) and other.beats)
        domain.create()
        await eventually(lambda: other.revisions == [1])


class TestPlaces:
    """How many streams may be open, and which ends when there are too many."""

    @pytest.fixture
    def ear(self, domain: Domain, monotonic: FrozenClock) -> Ears:
        """Return a function that makes a subscriber for a hub of at most four streams."""
        return Ears(domain, monotonic, most=4)

    @on_loop
    async def test_no_more_than(self, ear: Ears) -> None:
        """Streams above the maximum are refused with a retry delay, until one ends."""
        first, *_ = [ear().listen() for _ in range(4)]
        refused = ear().listen()
        await eventually(lambda: refused.ended)
        assert isinstance(refused.ended, Overloaded)
        assert SECOND <= refused.ended.retry_after <= 5 * SECOND
        first.leave()
        await eventually(lambda: first.cancelled)
        third = ear().listen()
        await eventually(lambda: third.beats)

    @on_loop
    async def test_a_tenant_that_opens_many(self, ear: Ears) -> None:
        """If one tenant holds all places, another still gets some: the first tenant's newest streams end."""
        flood = [ear(tenant="acme").listen() for _ in range(4)]
        await eventually(lambda: all(subscriber.beats for subscriber in flood))
        others = [ear(tenant="globex", deaf=True).listen() for _ in range(2)]
        await eventually(lambda: all(subscriber.spoken_to for subscriber in others))
        assert [type(subscriber.ended) for subscriber in flood] == [type(None), type(None), Overloaded, Overloaded]
        assert isinstance(flood[3].ended, Overloaded)
        assert SECOND <= flood[3].ended.retry_after <= 5 * SECOND
        await eventually(lambda: len(ear.hub) == 4)

    @on_loop
    async def test_a_reader_that_is_deaf_loses_its_place_too(self, ear: Ears) -> None:
        """A stream that must give up its place ends at once, even if its subscriber does not read."""
        flood = [ear(tenant="acme", deaf=True).listen() for _ in range(4)]
        await eventually(lambda: all(subscriber.spoken_to for subscriber in flood))
        ear(tenant="globex").listen()
        await eventually(lambda: isinstance(flood[3].ended, Overloaded))


class TestTheEnd:
    """How streams end, and what remains of them."""

    @on_loop
    async def test_nothing_stays(self, domain: Domain, ear: Ears) -> None:
        """Nothing remains of a closed stream: not in the hub, not in memory, not in the metric."""
        before = open_streams()

        async def live() -> list["weakref.ref[Ear]"]:
            ears = [ear().listen(project_id=f"project-{number}", interval=HOUR) for number in range(100)]
            await eventually(lambda: all(ear.beats for ear in ears))
            assert open_streams() == before + 100
            domain.create()
            domain.create(project_id="project-7")
            await eventually(lambda: ears[7].revisions)
            for each in ears:
                each.leave()
            return [weakref.ref(ear) for ear in ears]

        ears = await live()
        await eventually(lambda: len(ear.hub) == 0)
        assert open_streams() == before
        await eventually(lambda: gc.collect() >= 0 and not any(ear() for ear in ears))

    @pytest.mark.parametrize("deaf", [False, True])
    @on_loop
    async def test_a_client_that_leaves(self, ear: Ears, deaf: bool) -> None:
        """A stream whose client cancels ends as cancelled, whether it waits for events or for its reader."""
        subscriber = ear(deaf=deaf).listen()
        await eventually(lambda: subscriber.spoken_to)
        subscriber.leave()
        await eventually(lambda: subscriber.cancelled)
        assert (subscriber.ended, len(ear.hub)) == (None, 0)

    @on_loop
    async def test_a_client_that_leaves_while_the_database_is_asked(self, ear: Ears) -> None:
        """A client may also cancel during a database read; other streams that wait for the same read still get it."""
        subscriber, other = ear(), ear()
        asked, answer = threading.Event(), threading.Event()

        def read() -> int:
            asked.set()
            answer.wait(WAIT)
            return NEVER

        subscriber.read = other.read = read  # type: ignore[method-assign]
        subscriber.listen()
        other.listen()
        await eventually(asked.is_set)
        subscriber.leave()
        await eventually(lambda: subscriber.cancelled)
        answer.set()
        await eventually(lambda: other.beats)

    @on_loop
    async def test_goodbye(self, ear: Ears) -> None:
        """When the server stops, every stream ends with ServerStopping, even a deaf one, and no new one begins."""
        before = open_streams()
        subscribers, deaf = [ear().listen() for _ in range(100)], ear(deaf=True).listen()
        await eventually(lambda: deaf.spoken_to and all(subscriber.beats for subscriber in subscribers))
        ear.hub.say_goodbye()
        await eventually(lambda: all(isinstance(each.ended, ServerStopping) for each in [*subscribers, deaf]))
        late = ear().listen()
        await eventually(lambda: isinstance(late.ended, ServerStopping))
        await ear.hub.close()
        assert (len(ear.hub), open_streams()) == (0, before)

    def test_after_the_loop(self, domain: Domain, ear: Ears) -> None:
        """A change made after the loop has ended reaches no stream, and raises nothing."""

        async def begin() -> None:
            ear.hub.start(asyncio.get_running_loop())

        asyncio.run(begin())
        domain.create()
        domain.create()


@pytest.mark.parametrize("after", Phase)
@pytest.mark.parametrize("before", Phase)
def test_phases(before: Phase, after: Phase) -> None:
    """A stream opens, catches up and is live, maybe again and again. It ends once, from any of these, and for good."""
    stream = Stream(Mock(), "", "acme", KEY_ID, SECOND, 0, NEVER, None, None, phase=before)
    follows = (before.name, after.name) in {
        ("OPENING", "CATCHING_UP"),
        ("CATCHING_UP", "LIVE"),
        ("LIVE", "CATCHING_UP"),
        ("OPENING", "ENDING"),
        ("CATCHING_UP", "ENDING"),
        ("LIVE", "ENDING"),
        ("ENDING", "ENDED"),
    }
    assert stream.become(after) is follows
    assert stream.phase is (after if follows else before)
