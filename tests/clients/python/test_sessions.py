"""When the keys of open streams are verified again, which streams end, and how many keys are verified at a time."""

import logging
from collections.abc import Iterable
from typing import Any

import pytest

from tests.clients.python.conftest import Clock
from tests.clients.python.fake_server import key_of
from tumbler import Code, Unavailable, Verification
from tumbler._cache import Cache
from tumbler._sessions import MAX_CHECKS, AdmittedKey, Session, Sessions
from tumbler._settings import Settings
from tumbler.decide import Demand
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2

TTL = 60.0
STALENESS = 15.0
READ = Demand(required_scopes=("orders:read",))
DOWN = Unavailable("as the test has it")


class World:
    """Sessions, their cache, and a clock that a test moves."""

    def __init__(self, watch: bool = True) -> None:
        self.clock = Clock()
        settings = Settings(
            "127.0.0.1:1",
            "own",
            None,
            False,
            100,
            2**20,
            STALENESS,
            5.0,
            2.0,
            watch,
            None,
            logging.getLogger("tumbler"),
        )
        self.cache = Cache(settings, self.clock)
        self.sessions = Sessions(settings, self.cache, self.clock)
        self.cache.on_change = self.sessions.changed
        self.woken = 0
        self.sessions.wake = self._wake
        self.ended: list[tuple[Any, Any]] = []
        if watch:
            self.beat()

    def beat(self) -> None:
        """Deliver a heartbeat."""
        self.cache.apply(pb.WatchResponse(cursor="c"), False, self.clock())

    def changed(self, *numbers: int) -> None:
        """Deliver events of keys."""
        events = [event_pb2.KeyEvent(revision=20, key_id=key_of(number)[-66:-50]) for number in numbers]
        self.cache.apply(pb.WatchResponse(events=events, cursor="c"), False, self.clock())

    def open(self, number: int, name: Any = None, since: int | None = None, demand: Demand = READ) -> Session:
        """Open a stream of a key that is valid for TTL from now on."""
        known_since = self.sessions.change_count if since is None else since
        return self.sessions.open(
            key_of(number),
            demand,
            self.valid(),
            known_since,
            lambda outcome: self.ended.append((name or number, outcome)),
        )

    def valid(self, ttl: float = TTL) -> Verification:
        """Return the verdict that a key is valid for this long from now on."""
        return Verification(Code.VALID, until=self.clock() + int(ttl * 1_000_000))

    def asked(self) -> list[AdmittedKey]:
        """Take the keys to verify now."""
        return self.sessions.due()

    def settle(self, asked: Iterable[AdmittedKey], outcome: Any) -> None:
        """Settle them all with the same outcome."""
        for admitted in asked:
            self.sessions.settle(admitted, admitted.turn, outcome)

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def world() -> World:
    """Return a world whose stream of changes is fresh."""
    return World()


def test_nothing_is_asked_while_the_stream_vouches(world: World) -> None:
    """While the stream is fresh and has no event of the key, the key is not verified before its cache_ttl ends."""
    world.open(1)
    for _ in range(11):
        world.clock.pass_by(5)
        world.beat()
        assert world.asked() == []
    world.clock.pass_by(5)
    (admitted,) = world.asked()
    assert (admitted.key, admitted.demand) == (key_of(1), READ)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.VALID])
def test_an_event_ends_a_stream(world: World, code: Code) -> None:
    """An event verifies its key at once. Any verdict but VALID ends its streams, each once, and no others."""
    world.open(1, "one")
    world.open(1, "two")
    world.open(2, "other")
    woken = world.woken
    world.changed(1)
    assert world.woken > woken
    asked = world.asked()
    assert [admitted.key for admitted in asked] == [key_of(1)]
    denied = Verification(code)
    world.settle(asked, denied)
    assert sorted(world.ended, key=lambda ended: ended[0]) == [("one", denied), ("two", denied)]
    world.changed(1)
    assert world.asked() == []
    assert len(world.sessions) == 1


def test_an_event_that_changes_nothing_here(world: World) -> None:
    """A stream whose key is still valid for it after a change continues."""
    world.open(1)
    world.changed(1)
    world.settle(world.asked(), world.valid())
    assert (world.ended, world.asked(), len(world.sessions)) == ([], [], 1)


def test_demands_differ(world: World) -> None:
    """Streams of one key with different demands are decided separately."""
    world.open(1, "reads")
    world.open(1, "writes", demand=Demand(required_scopes=("orders:write",)))
    world.changed(1)
    for admitted in world.asked():
        writes = admitted.demand.required_scopes == ("orders:write",)
        world.settle([admitted], Verification(Code.INSUFFICIENT_SCOPE) if writes else world.valid())
    assert [name for name, _ in world.ended] == ["writes"]


def test_an_event_between_the_verdict_and_the_stream(world: World) -> None:
    """An event between the verification of a key and the registration of its stream counts."""
    since = world.sessions.change_count
    world.changed(1)
    world.open(1, since=since)
    assert len(world.asked()) == 1


def test_an_event_while_it_is_asked(world: World) -> None:
    """If an event arrives while its key is being verified, the key is verified again."""
    world.open(1)
    world.changed(1)
    first = world.asked()
    world.changed(1)
    assert world.asked() == []
    world.settle(first, world.valid())
    second = world.asked()
    assert len(second) == 1
    world.settle(second, Verification(Code.REVOKED))
    assert len(world.ended) == 1


def test_an_answer_that_denies_a_key(world: World) -> None:
    """If a verification denies a cached key, the key is verified for its streams too, whatever the stream delivered."""
    world.open(1)
    world.cache.on_change(key_of(1)[-66:-50])
    assert len(world.asked()) == 1


@pytest.mark.parametrize("left", [-5.0, 0.0, 0.0004, 0.999, 3.0], ids=str)
def test_the_end_of_a_record(world: World, left: float) -> None:
    """A key is verified again when its record ends by itself, by expiry or grace, but at most once a second."""
    world.open(1)
    world.changed(1)
    world.settle(world.asked(), world.valid(left))
    pause = world.sessions.pause()
    assert pause is not None
    assert pause <= max(left, 1.0)
    world.clock.pass_by(max(left, 1.0) - 0.001)
    assert world.asked() == []
    world.clock.pass_by(0.001)
    assert len(world.asked()) == 1


def test_changes_are_not_delayed(world: World) -> None:
    """An event makes its key be verified at once, however short its answers live."""
    world.open(1)
    world.changed(1)
    world.settle(world.asked(), world.valid(0))
    world.changed(1)
    assert len(world.asked()) == 1


def test_trust_that_lapses(world: World) -> None:
    """Once the stream has been silent for max_staleness, every key is verified every max_staleness."""
    world.open(1)
    world.open(2)
    world.clock.pass_by(STALENESS - 0.001)
    assert world.asked() == []
    world.clock.pass_by(0.002)
    asked = world.asked()
    world.clock.pass_by(0.001)
    asked += world.asked()
    assert {admitted.key for admitted in asked} == {key_of(1), key_of(2)}
    world.settle(asked, world.valid())
    world.clock.pass_by(STALENESS - 0.001)
    assert world.asked() == []
    world.clock.pass_by(0.002)
    assert len(world.asked()) == 2


def test_without_a_stream_of_changes() -> None:
    """Without a stream of changes a key is verified every max_staleness."""
    world = World(watch=False)
    world.open(1)
    for _ in range(3):
        world.clock.pass_by(STALENESS)
        asked = world.asked()
        assert len(asked) == 1
        world.settle(asked, world.valid())


def test_a_key_that_cannot_be_verified(world: World) -> None:
    """If a key cannot be verified, it is retried each second. Its stream ends after max_staleness."""
    world.open(1)
    world.changed(1)
    for _ in range(int(STALENESS)):
        world.settle(world.asked(), DOWN)
        assert world.ended == []
        assert world.asked() == []
        world.clock.pass_by(1)
    world.settle(world.asked(), DOWN)
    assert world.ended == [(1, DOWN)]
    assert len(world.sessions) == 0


def test_a_server_that_comes_back_in_time(world: World) -> None:
    """A key that is found valid in time is no longer in doubt."""
    world.open(1)
    world.changed(1)
    for _ in range(int(STALENESS) - 1):
        world.settle(world.asked(), DOWN)
        world.clock.pass_by(1)
    world.settle(world.asked(), world.valid())
    world.changed(1)
    world.settle(world.asked(), DOWN)
    assert world.ended == []


def test_a_flood_of_events(world: World) -> None:
    """Ten thousand keys with three events each are verified once each, and few at a time."""
    for number in range(10_000):
        world.open(number)
    for _ in range(3):
        world.changed(*range(10_000))
    seen = 0
    while asked := world.asked():
        assert len(asked) <= MAX_CHECKS
        assert world.asked() == []
        seen += len(asked)
        world.settle(asked, Verification(Code.REVOKED))
    assert seen == len(world.ended) == 10_000


def test_a_reset_is_spread(world: World) -> None:
    """After a reset every key is verified, a thousand a second, and all within half of max_staleness."""
    for number in range(10_000):
        world.open(number)
    world.cache.apply(pb.WatchResponse(cursor="c", reset=True), False, world.clock())
    counts = []
    for _ in range(int(STALENESS) + 1):
        asked, taken = world.asked(), 0
        while asked:
            taken += len(asked)
            world.settle(asked, world.valid())
            asked = world.asked()
        counts.append(taken)
        world.beat()
        world.clock.pass_by(0.5)
    assert sum(counts) == 10_000
    assert counts[0] <= 1
    assert max(counts[:-2]) <= 2_600


def test_too_many_to_ask_in_time(world: World) -> None:
    """Keys that are not verified within max_staleness end their streams: slow answers delay no end."""
    for number in range(MAX_CHECKS + 10):
        world.open(number)
    world.changed(*range(MAX_CHECKS + 10))
    stuck = world.asked()
    world.clock.pass_by(STALENESS + 0.1)
    world.settle(stuck, DOWN)
    world.asked()
    assert len(world.ended) == MAX_CHECKS + 10
    assert {type(outcome) for _, outcome in world.ended} == {Unavailable}


def test_nothing_is_left_of_a_stream(world: World) -> None:
    """Streams that come and go leave nothing behind, however fast, and closing one twice does nothing."""
    for number in range(2_000):
        session = world.open(number % 50)
        session.close()
        session.close()
        assert len(world.sessions._timers) < 200
    assert (len(world.sessions), world.sessions._keys, world.sessions._by_id) == (0, {}, {})
    assert world.sessions.pause() is None
    world.changed(*range(50))
    assert world.asked() == []
    assert not world.sessions._queue


def test_no_key_outlives_its_streams(world: World) -> None:
    """A key's text is dropped with the last stream that it opened, even if its timer is still running."""
    world.open(1).close()
    (timer,) = world.sessions._timers
    assert timer[2].key == ""


def test_closing(world: World) -> None:
    """Closing the verifier ends all streams, and every stream that is opened later."""
    world.open(1)
    world.sessions.close(DOWN)
    world.open(2)
    assert world.ended == [(1, DOWN), (2, DOWN)]
    assert len(world.sessions) == 0


def test_an_end_that_fails(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """If ending a stream fails, that is logged, and the other streams still end."""

    def fails(_: Any) -> None:
        raise ZeroDivisionError

    world.sessions.open(key_of(1), READ, world.valid(), world.sessions.change_count, fails)
    world.open(1, "other")
    world.changed(1)
    world.settle(world.asked(), Verification(Code.REVOKED))
    assert [name for name, _ in world.ended] == ["other"]
    assert "could not be ended" in caplog.text
    assert key_of(1) not in caplog.text


@pytest.mark.usefixtures("unwritable")
def test_a_failed_end_that_cannot_be_logged(world: World) -> None:
    """If that cannot be logged either, the other streams still end."""

    def fails(_: Any) -> None:
        raise ZeroDivisionError

    for number in (1, 2):
        world.sessions.open(key_of(number), READ, world.valid(), world.sessions.change_count, fails)
    world.open(2, "other")
    world.changed(1, 2)
    world.settle(world.asked(), Verification(Code.REVOKED))
    assert [name for name, _ in world.ended] == ["other"]
    assert len(world.sessions) == 0


def test_a_stream_that_nothing_watches() -> None:
    """If the thread that verifies keys again cannot start, the stream does not begin, and none is left open."""
    world = World()

    def fail() -> None:
        raise RuntimeError("can't start new thread")

    world.sessions.wake = fail
    with pytest.raises(RuntimeError):
        world.open(1)
    assert len(world.sessions) == 0
    world.changed(1)
