"""Telling listeners what changes, without gRPC. Time stands unless a test lets it go on; the threads are real."""

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.domain import OPERATOR, Domain
from tests.e2e.service import eventually
from tests.harness import FrozenClock
from tests.unit.test_tail import restore
from tumbler_server.clock import DAY, HOUR, NEVER, SECOND
from tumbler_server.errors import Overloaded, ReaderTooSlow, ServerStopping, StoreUnavailable, Unauthenticated
from tumbler_server.events.feed import Notice
from tumbler_server.events.retention import Retention
from tumbler_server.events.ring import Ring
from tumbler_server.events.senders import MOST_STUCK, STUCK
from tumbler_server.events.tail import MAX_STALENESS
from tumbler_server.events.watch import FRESH, IMPATIENCE, MOST_LAG, PATIENCE, Hub, Stream
from tumbler_server.store.database import Store, open_store

BEAT = 5 * SECOND
KEY_ID = "0" * 16


class Ear:
    """A listener: it writes down what it hears. While it is deaf it takes nothing, and whoever tells it waits."""

    def __init__(self, hub: Hub, deaf: bool = False) -> None:
        self.heard: list[Notice] = []
        self.ended: Exception | None = None
        self.was_cut = False
        self.spoken_to = False
        self.until = NEVER
        self.judged = 0
        self.refusal: Exception | None = None
        self.then: Callable[[], object] = lambda: None
        self._hub = hub
        self._stream: Stream | None = None
        self._hears = threading.Event()
        if not deaf:
            self._hears.set()

    def listen(
        self, project_id: str = "", start: int | None = None, interval: int = BEAT, key_id: str = KEY_ID
    ) -> "Ear":
        """Open a stream."""
        self._stream = self._hub.open(self, project_id, key_id, self.until, interval, start)
        if self.ended:
            self._hub.gone(self._stream)
        return self

    def leave(self) -> None:
        """Be gone, as a client that cancels."""
        self._hears.set()
        assert self._stream is not None
        self._hub.gone(self._stream)

    def send(self, notice: Notice) -> None:
        self.spoken_to = True
        self._hears.wait()
        self.heard.append(notice)
        self.then()

    def end(self, failure: Exception) -> None:
        assert self.ended is None
        self.ended = failure
        if self._stream and self._hears.is_set():
            self._hub.gone(self._stream)

    def cut(self) -> None:
        assert not self.was_cut
        self.was_cut = True
        self.leave()

    def check(self, anew: bool) -> int:
        self.judged += anew
        if self.refusal:
            raise self.refusal
        return self.until

    @property
    def revisions(self) -> list[int]:
        """Return which events were heard of, in order."""
        return [event.revision for notice in list(self.heard) for event in notice.events]

    @property
    def beats(self) -> list[int]:
        """Return the cursors of the heartbeats."""
        return [notice.cursor for notice in list(self.heard) if not (notice.events or notice.reset)]

    @property
    def resets(self) -> list[int]:
        """Return the cursors of the resets."""
        return [notice.cursor for notice in list(self.heard) if notice.reset]


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no database answer any more."""

    def fail(*_: Any) -> Any:
        raise StoreUnavailable

    for name in ("read", "select", "write", "version"):
        monkeypatch.setattr(Store, name, fail)


def open_streams() -> float:
    """Return what the metrics say."""
    return REGISTRY.get_sample_value("tumbler_watch_streams") or 0.0


@pytest.fixture
def uptime(domain: Domain) -> FrozenClock:
    """Give the clock by which heartbeats are due, positions age and patience ends."""
    domain.uptime.advance(HOUR)
    domain.tail.catch_up()
    return domain.uptime


@pytest.fixture
def hub(domain: Domain, uptime: FrozenClock) -> Iterator[Hub]:
    """Give a hub that tells; up to 200 streams."""
    hub = Hub(domain.store, domain.tail, domain.clock, 200, MAX_STALENESS, uptime)
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def ear(hub: Hub) -> Callable[..., Ear]:
    """Give a function that makes a listener."""
    return lambda **how: Ear(hub, **how)


Ears = Callable[..., Ear]


@pytest.fixture
def other(database_url: str, hub: Hub) -> Iterator[Domain]:
    """Give what another server does on the same database."""
    store = open_store(database_url)
    domain = Domain(store, FrozenClock())
    yield domain
    domain.close()
    store.close()


class TestBeginning:
    """Where a stream begins."""

    def test_now(self, domain: Domain, ear: Ears) -> None:
        """The first word comes at once and says where the stream begins: after all that has happened."""
        domain.create()
        new = ear().listen()
        eventually(lambda: new.beats == [1])
        domain.create()
        eventually(lambda: new.revisions == [2])

    def test_after_a_revision(self, domain: Domain, ear: Ears) -> None:
        """Begun after a revision, a stream is told what it missed, and then at once that this was all."""
        for _ in range(4):
            domain.create()
        late = ear().listen(start=1)
        eventually(lambda: late.beats == [4])
        assert late.revisions == [2, 3, 4]
        assert late.resets == []

    def test_what_memory_has_forgotten(self, domain: Domain, ear: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is not in memory any more is read from the log, however many pages that takes."""
        monkeypatch.setattr("tumbler_server.events.feed.MOST_EVENTS", 3)
        for number in range(11):
            domain.create(project_id=("acme", "globex")[number % 2])
        domain.tail.ring = Ring(domain.tail.position)
        every, ours = ear().listen(start=1), ear().listen("acme", start=1)
        eventually(lambda: (every.beats, ours.beats) == ([11], [11]))
        assert every.revisions == list(range(2, 12))
        assert ours.revisions == [3, 5, 7, 9, 11]
        domain.create()
        eventually(lambda: (every.revisions[-1], ours.revisions[-1]) == (12, 12))

    def test_what_is_not_kept(self, domain: Domain, ear: Ears) -> None:
        """Begun where events have been removed, a stream is reset, and goes on from the present."""
        for _ in range(3):
            domain.create()
        domain.clock.advance(2 * DAY)
        domain.create()
        Retention(domain.store, domain.clock, DAY).remove()
        domain.tail.ring = Ring(domain.tail.position)
        late = ear().listen(start=2)
        eventually(lambda: late.beats == [4])
        assert (late.resets, late.revisions) == ([4], [])
        kept = ear().listen(start=3)
        eventually(lambda: kept.beats == [4])
        assert (kept.resets, kept.revisions) == ([], [4])

    def test_beyond_the_end(self, domain: Domain, ear: Ears) -> None:
        """Begun after a revision that does not exist, a stream is reset: a backup was restored."""
        domain.create()
        lost = ear().listen(start=2)
        eventually(lambda: lost.beats == [1])
        assert lost.resets == [1]
        domain.create()
        eventually(lambda: lost.revisions == [2])

    def test_a_key_that_has_changed(self, hub: Hub, ear: Ears) -> None:
        """The listener's key is judged by what the database says of it after the stream was opened."""
        refused = ear()
        refused.refusal = Unauthenticated()
        refused.listen()
        eventually(lambda: len(hub) == 0)
        assert (refused.ended, refused.judged, refused.heard) == (refused.refusal, 1, [])

    def test_without_a_database(self, hub: Hub, ear: Ears, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the database does not answer, no stream begins: nobody knows where."""
        away(monkeypatch)
        refused = ear().listen()
        eventually(lambda: len(hub) == 0)
        assert isinstance(refused.ended, StoreUnavailable)
        assert refused.heard == []
        monkeypatch.undo()


class TestChanges:
    """Who is told what."""

    def test_everybody_everything(self, domain: Domain, ear: Ears) -> None:
        """While many write, everybody is told each change once, in commit order, and so is who begins meanwhile."""
        listeners = [ear().listen() for _ in range(20)]
        eventually(lambda: all(listener.beats for listener in listeners))
        late: list[Ear] = []

        def write(number: int) -> None:
            made = domain.create()
            if number == 10:
                late.extend(ear().listen(start=start) for start in (0, 3, None))
            domain.revoke(made.key.id)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(30)))
        eventually(lambda: all(listener.revisions[-1:] == [60] for listener in [*listeners, *late]))
        assert all(listener.revisions == list(range(1, 61)) for listener in listeners)
        assert (late[0].revisions, late[1].revisions) == (list(range(1, 61)), list(range(4, 61)))
        begin = late[2].heard[0].cursor
        assert late[2].revisions == list(range(begin + 1, 61))

    def test_one_project(self, domain: Domain, ear: Ears, uptime: FrozenClock) -> None:
        """Who listens to one project is told nothing of another; the cursor goes on with the next heartbeat."""
        ours, theirs, every = ear().listen("acme"), ear().listen("globex"), ear().listen()
        eventually(lambda: all(listener.beats for listener in (ours, theirs, every)))
        for number in range(10):
            domain.create(project_id=("acme", "globex", "globex")[number % 3])
        eventually(lambda: every.revisions == list(range(1, 11)))
        eventually(lambda: ours.revisions == [1, 4, 7, 10])
        eventually(lambda: theirs.revisions == [2, 3, 5, 6, 8, 9])
        assert {event.project_id for notice in theirs.heard for event in notice.events} == {"globex"}
        uptime.advance(BEAT)
        eventually(lambda: theirs.beats[-1] == 10)

    def test_after_others_silence(self, domain: Domain, ear: Ears) -> None:
        """A project in which nothing happens for long misses nothing, though memory does not reach back so far."""
        domain.tail.ring = Ring(domain.tail.position, size=3)
        quiet = ear().listen("acme", interval=HOUR)
        eventually(lambda: quiet.beats == [0])
        for _ in range(10):
            domain.create(project_id="globex")
        domain.create()
        eventually(lambda: quiet.revisions == [11])
        assert quiet.ended is None

    @pytest.mark.parametrize("seed", range(3))
    def test_broken_streams(self, domain: Domain, ear: Ears, seed: int) -> None:
        """Wherever a stream breaks, begun again at the last cursor seen it misses nothing and repeats nothing."""
        chance = random.Random(seed)  # noqa: S311 - no secret
        seen: list[int] = []
        cursor = 0
        with ThreadPoolExecutor(2) as pool:
            writing = [pool.submit(domain.create, project_id=chance.choice(["acme", "globex"])) for _ in range(60)]
            while seen[-1:] != [60]:
                listener, enough = ear().listen(start=cursor), chance.randrange(1, 4)
                eventually(
                    lambda listener=listener, enough=enough: (
                        len(listener.heard) >= enough or all(w.done() for w in writing)
                    )
                )
                listener.leave()
                # Of what was sent, only some arrived.
                arrived = listener.heard[: chance.randrange(len(listener.heard) + 1)]
                seen += [event.revision for notice in arrived for event in notice.events]
                cursor = arrived[-1].cursor if arrived else cursor
        assert seen == list(range(1, 61))

    def test_a_restored_backup(self, domain: Domain, ear: Ears) -> None:
        """When the log goes back, all listeners are reset and told what happens from there."""
        for _ in range(5):
            domain.create()
        listeners = [ear().listen(), ear().listen("acme"), ear().listen("globex")]
        eventually(lambda: all(listener.beats for listener in listeners))
        restore(domain.store, 2)
        domain.tail.catch_up()
        eventually(lambda: all(listener.resets == [2] for listener in listeners))
        domain.create()
        domain.create(project_id="globex")
        eventually(lambda: [each.revisions for each in listeners] == [[3, 4], [3], [4]])
        assert all(listener.resets == [2] for listener in listeners)

    def test_a_restored_backup_that_has_gone_on(self, domain: Domain, other: Domain, ear: Ears) -> None:
        """When the log has another history and is longer than before, what was told of the old one is void too."""
        for _ in range(5):
            domain.create()
        listeners = [ear().listen(), ear().listen("acme"), ear().listen("globex")]
        eventually(lambda: all(listener.beats for listener in listeners))
        restore(domain.store, 2)
        for _ in range(4):
            other.create()
        domain.tail.catch_up()
        eventually(lambda: all(listener.resets == [6] for listener in listeners))
        assert all(listener.revisions == [] for listener in listeners)


class TestHeartbeats:
    """The promise that there is nothing else to tell."""

    def test_every_interval(self, domain: Domain, ear: Ears, uptime: FrozenClock) -> None:
        """In each interval there is one heartbeat, whether anything else was told or not."""
        often, rarely = ear().listen(interval=SECOND), ear().listen(interval=BEAT)
        for number in range(1, 6):
            eventually(lambda number=number: len(often.beats) == number)
            if number % 2:
                domain.create()
                eventually(lambda: often.revisions[-1:] == [domain.tail.position])
            uptime.advance(SECOND)
        eventually(lambda: len(often.beats) == 6)
        eventually(lambda: len(rarely.beats) == 2)
        assert often.beats[-1] == 3

    def test_spread(self, ear: Ears, uptime: FrozenClock) -> None:
        """The heartbeats of streams that were opened together do not come together."""
        listeners = [ear().listen() for _ in range(100)]

        def beaten() -> int:
            return sum(len(listener.beats) > 1 for listener in listeners)

        eventually(lambda: all(listener.beats for listener in listeners))
        uptime.advance(BEAT // 2)
        eventually(lambda: beaten() > 20)
        probe = ear().listen()
        eventually(lambda: probe.beats)
        assert beaten() < 80
        uptime.advance(BEAT // 2)
        eventually(lambda: beaten() == 100)

    def test_none_without_a_database(
        self, domain: Domain, ear: Ears, uptime: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While the database does not answer there is none; when it does, all come that are due, and streams go on."""
        listeners = [ear().listen(interval=SECOND) for _ in range(10)]
        eventually(lambda: all(len(listener.beats) == 1 for listener in listeners))
        asked = threading.Event()
        with monkeypatch.context() as patched:
            away(patched)
            confirm = domain.tail.confirm

            def ask() -> int:
                asked.set()
                return confirm()

            patched.setattr(domain.tail, "confirm", ask)
            uptime.advance(10 * SECOND)
            for _ in range(3):
                asked.clear()
                assert asked.wait(30)
            assert all(len(listener.beats) == 1 for listener in listeners)
        uptime.advance(SECOND)
        eventually(lambda: all(len(listener.beats) >= 2 for listener in listeners))
        domain.create()
        eventually(lambda: all(listener.revisions == [1] for listener in listeners))
        assert [listener.ended for listener in listeners] == [None] * 10

    def test_as_of_now(self, ear: Ears, other: Domain, uptime: FrozenClock) -> None:
        """A heartbeat is sent only after what others committed until a moment ago has been told."""
        listener = ear().listen()
        eventually(lambda: listener.beats == [0])
        other.create()  # nobody has woken us
        uptime.advance(FRESH + 1)
        uptime.advance(BEAT)
        eventually(lambda: len(listener.beats) == 2)
        assert listener.beats == [0, 1]
        assert listener.revisions == [1]


class TestTheListenersKey:
    """A listener must be let in all the time."""

    def test_its_key_changes(self, domain: Domain, ear: Ears) -> None:
        """Each change of the listener's own key has it judged anew, whatever project it listens to."""
        theirs = domain.create(project_id="tumbler").key
        listener, other = ear().listen("globex", key_id=theirs.id), ear().listen("globex")
        eventually(lambda: listener.beats and other.beats)
        before = listener.judged
        domain.lifecycle.set_active(OPERATOR, theirs.id, False)
        eventually(lambda: listener.judged > before)
        assert listener.ended is None  # it is not for the hub to say
        listener.refusal = Unauthenticated()
        domain.revoke(theirs.id)
        eventually(lambda: listener.ended is listener.refusal)
        assert (other.judged, other.ended) == (1, None)

    def test_its_key_expires(self, domain: Domain, ear: Ears, uptime: FrozenClock) -> None:
        """When the listener's key ends, so does the stream, long before the next heartbeat."""
        listener = ear()
        listener.until = domain.clock() + BEAT
        listener.listen(interval=HOUR)
        eventually(lambda: listener.beats)
        listener.refusal = Unauthenticated()
        domain.clock.advance(BEAT)
        uptime.advance(BEAT)
        eventually(lambda: listener.ended is listener.refusal)

    def test_its_key_is_given_an_end(self, domain: Domain, ear: Ears, uptime: FrozenClock) -> None:
        """The same holds for an end that the key was given after the stream was opened."""
        theirs = domain.create().key
        listener = ear().listen("globex", interval=HOUR, key_id=theirs.id)
        eventually(lambda: listener.beats)
        before = listener.judged
        listener.until = domain.clock() + BEAT
        domain.rotate(theirs.id)
        eventually(lambda: listener.judged > before)
        listener.refusal = Unauthenticated()
        domain.clock.advance(BEAT)
        uptime.advance(BEAT)
        eventually(lambda: listener.ended is listener.refusal)


class TestSlowListeners:
    """Who does not listen costs nobody else anything, and not much."""

    def test_others_go_on(self, domain: Domain, ear: Ears, uptime: FrozenClock) -> None:
        """As many deaf listeners as there is room for keep no change from the others."""
        deaf = [ear(deaf=True).listen() for _ in range(MOST_STUCK)]
        others = [ear().listen() for _ in range(10)]
        domain.create()

        def told() -> bool:
            uptime.advance(STUCK)
            return all(1 in listener.revisions + listener.beats for listener in others)

        eventually(told)
        assert not any(listener.was_cut for listener in deaf)

    def test_cut_off(self, ear: Ears, hub: Hub, uptime: FrozenClock) -> None:
        """Who takes nothing for five seconds is told that this was too slow, and cut after as long again."""
        deaf, other = ear(deaf=True).listen(), ear().listen()
        eventually(lambda: deaf.spoken_to and other.beats)
        uptime.advance(PATIENCE)
        eventually(lambda: len(other.beats) >= 2)
        assert deaf.ended is None
        uptime.advance(STUCK)
        eventually(lambda: isinstance(deaf.ended, ReaderTooSlow))
        assert not deaf.was_cut
        uptime.advance(PATIENCE)
        eventually(lambda: deaf.was_cut and len(hub) == 1)
        assert other.ended is None

    def test_too_many(self, ear: Ears, uptime: FrozenClock) -> None:
        """Where more are deaf than there is room for, those go first that have been for longest, and sooner."""
        deaf = [ear(deaf=True).listen() for _ in range(2 * MOST_STUCK)]
        others = [ear().listen() for _ in range(10)]
        begun = uptime()

        def told() -> bool:
            uptime.advance(STUCK)
            return all(listener.heard for listener in others)

        eventually(told)
        eventually(lambda: uptime.advance(STUCK) or sum(listener.was_cut for listener in deaf) >= MOST_STUCK)
        assert all(isinstance(listener.ended, ReaderTooSlow) for listener in deaf if listener.was_cut)
        assert uptime() - begun > IMPATIENCE

    def test_left_behind(self, domain: Domain, ear: Ears) -> None:
        """Who was up to date, and then fell further behind than memory reaches, is told that this was too slow."""
        domain.tail.ring = Ring(domain.tail.position, size=3)
        slow = ear().listen()
        eventually(lambda: slow.beats)
        hears = threading.Event()
        slow.then = hears.wait
        domain.create()
        eventually(lambda: slow.revisions)
        for _ in range(4):
            domain.create()
        hears.set()
        eventually(lambda: isinstance(slow.ended, ReaderTooSlow))

    def test_always_behind(
        self, domain: Domain, ear: Ears, uptime: FrozenClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who takes a little at a time, while more comes, is told after thirty seconds of waiting."""
        monkeypatch.setattr("tumbler_server.events.feed.MOST_EVENTS", 1)
        slow = ear().listen()
        eventually(lambda: slow.beats)

        def dawdle() -> None:
            domain.create()
            domain.create()
            uptime.advance(PATIENCE - STUCK)

        slow.then = dawdle
        domain.create()
        eventually(lambda: isinstance(slow.ended, ReaderTooSlow))
        assert len(slow.revisions) == MOST_LAG // (PATIENCE - STUCK) + 2

    def test_a_broken_line(self, domain: Domain, ear: Ears) -> None:
        """A fault in telling one listener ends that stream and no other."""
        broken, other = ear(), ear()

        def fail() -> None:
            raise KeyError

        broken.then = fail
        broken.listen()
        other.listen()
        eventually(lambda: isinstance(broken.ended, KeyError) and other.beats)
        domain.create()
        eventually(lambda: other.revisions == [1])


class TestTheEnd:
    """How streams end, and what stays of them."""

    def test_no_more_than(self, domain: Domain, uptime: FrozenClock) -> None:
        """More streams than agreed are refused, until one ends."""
        hub = Hub(domain.store, domain.tail, domain.clock, 2, MAX_STALENESS, uptime)
        hub.start()
        first, _ = Ear(hub).listen(), Ear(hub).listen()
        with pytest.raises(Overloaded) as refused:
            Ear(hub).listen()
        assert refused.value.retry_after == SECOND
        first.leave()
        third = Ear(hub).listen()
        eventually(lambda: third.beats)
        hub.close()

    def test_nothing_stays(self, domain: Domain, hub: Hub) -> None:
        """Of streams that are gone nothing is left: not in the hub, not in memory, not in the count."""
        before = open_streams()

        def live() -> list["weakref.ref[Ear]"]:
            ears = [Ear(hub).listen(project_id=f"project-{number}", interval=HOUR) for number in range(100)]
            assert open_streams() == before + 100
            eventually(lambda: all(ear.beats for ear in ears))
            domain.create()
            domain.create(project_id="project-7")
            eventually(lambda: ears[7].revisions)
            for ear in ears:
                ear.leave()
            return [weakref.ref(ear) for ear in ears]

        ears = live()
        eventually(lambda: len(hub) == 0)
        assert open_streams() == before
        eventually(lambda: gc.collect() >= 0 and not any(ear() for ear in ears))

    def test_goodbye(self, domain: Domain, uptime: FrozenClock) -> None:
        """When the server ends, all streams are told so, who does not hear it is cut, and nobody begins any more."""
        before = open_streams()
        hub = Hub(domain.store, domain.tail, domain.clock, 200, MAX_STALENESS, uptime)
        hub.start()
        listeners, deaf = [Ear(hub).listen() for _ in range(20)], Ear(hub, deaf=True).listen()
        eventually(lambda: all(listener.beats for listener in listeners))
        hub.say_goodbye()
        assert all(isinstance(listener.ended, ServerStopping) for listener in [*listeners, deaf])
        with pytest.raises(ServerStopping):
            Ear(hub).listen()
        hub.close()
        assert deaf.was_cut
        assert not any(listener.was_cut for listener in listeners)
        assert open_streams() == before
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("watch")]
