"""When a refused cursor is dropped, and which answers are cached after that."""

import logging
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.clients.python.conftest import Clock
from tests.clients.python.fake_server import NOW, key_of
from tests.clients.python.test_batcher import join
from tumbler._batcher import Batch, Batcher, Failure, Flight
from tumbler._cache import Cache, Position, read_answer
from tumbler._settings import Settings
from tumbler.decide import Code, Demand
from tumbler.errors import Unavailable
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2

KEY = key_of(1)


@pytest.fixture
def settings() -> Settings:
    """Return the settings of a verifier that follows the stream."""
    return Settings("localhost:1", "own", None, False, 10, 2**20, 15, 5, 2, True, None, logging.getLogger("tests"))


@pytest.fixture
def cache(settings: Settings, passing: Clock) -> Cache:
    """Return a cache that is fresh, holds a key, and has the cursor "old"."""
    cache = Cache(settings, passing)
    deliver(cache, passing, "old")
    store(cache, passing, cache.position())
    assert len(cache) == 1
    return cache


def deliver(cache: Cache, clock: Clock, cursor: str) -> None:
    """Deliver a heartbeat."""
    cache.apply(pb.WatchResponse(cursor=cursor), False, clock())


def valid() -> pb.VerifyResponse:
    """Return the answer that the key is valid."""
    response = pb.VerifyResponse(
        code=pb.VERIFY_CODE_VALID, valid=True, key_id=KEY[-66:-50], project_id="acme", revision=1
    )
    response.check_time.seconds = NOW
    response.cache_ttl.seconds = 60
    return response


def store(cache: Cache, clock: Clock, position: Position) -> None:
    """Store the key's answer to a call that was sent now, at this position."""
    cache.store(KEY, read_answer(valid(), KEY, Demand(), clock()), position)


def test_the_current_cursor_is_dropped(cache: Cache, passing: Clock) -> None:
    """Everything is evicted with it, and nothing is cached until the next heartbeat."""
    cache.drop_cursor("old")
    assert (len(cache), cache.cursor) == (0, "")
    assert cache.fresh_until < passing()
    store(cache, passing, cache.position())
    assert len(cache) == 0
    deliver(cache, passing, "new")
    store(cache, passing, cache.position())
    assert len(cache) == 1


def test_the_stream_has_moved_on(cache: Cache, passing: Clock) -> None:
    """If the stream has another cursor by now, the server knew that one, and the cache stays as it is."""
    evicted: list[str | None] = []
    cache.on_change = evicted.append
    deliver(cache, passing, "new")
    cache.drop_cursor("old")
    assert (len(cache), cache.cursor, evicted) == (1, "new", [])
    assert cache.fresh_until > passing()


def test_a_call_without_a_cursor(cache: Cache, passing: Clock) -> None:
    """The answer to a call that was sent while there was no cursor is not cached, even if a heartbeat arrived since."""
    cache.drop_cursor("old")
    sent = cache.position()
    deliver(cache, passing, "new")
    store(cache, passing, sent)
    assert len(cache) == 0
    assert not cache.unchanged_since(sent)


def test_a_repeated_call_while_the_stream_moves_on(settings: Settings, passing: Clock) -> None:
    """If the stream has moved on, a call that is repeated without its cursor evicts nothing, and is not cached."""
    cache = Cache(settings, passing)
    deliver(cache, passing, "old")
    batcher = Batcher(settings, cache, passing)
    repeated, batch = join(batcher, 1)
    assert batch is not None
    deliver(cache, passing, "new")
    batch = batcher.failed(batch, grpc.StatusCode.INVALID_ARGUMENT, "consistency")
    assert batch is not None
    later, _ = join(batcher, 1)
    assert later is not repeated
    batcher.answered(batch, valid())
    assert (repeated.future.result(0).code, len(cache), cache.cursor) == (Code.VALID, 0, "new")
    assert cache.fresh_until > passing()


class TestRevisions:
    """An answer and the changes of its key that the stream has delivered."""

    @pytest.fixture
    def batcher(self, settings: Settings, cache: Cache, passing: Clock) -> Batcher:
        """Return a batcher with the cache."""
        return Batcher(settings, cache, passing)

    @staticmethod
    def change(cache: Cache, clock: Clock, *revisions: int, key: str = KEY, reset: bool = False) -> None:
        """Deliver a message with events of a key."""
        events = [event_pb2.KeyEvent(revision=revision, key_id=key[-66:-50]) for revision in revisions]
        cache.apply(pb.WatchResponse(events=events, cursor="later", reset=reset), False, clock())

    @staticmethod
    def send(batcher: Batcher) -> tuple[Flight, Batch]:
        """Send a call for the key."""
        flight, batch = join(batcher, 1)
        assert batch is not None
        return flight, batch

    @pytest.mark.parametrize("revisions", [(100,), (100, 50)], ids=str)
    def test_an_answer_older_than_a_known_change(
        self, batcher: Batcher, cache: Cache, passing: Clock, revisions: tuple[int, ...]
    ) -> None:
        """It decides nothing, whatever it says of the key, and is not cached. Newer ones are."""
        self.change(cache, passing, *revisions)
        for code in (pb.VERIFY_CODE_VALID, pb.VERIFY_CODE_REVOKED):
            response = valid()
            response.code, response.valid, response.revision = code, code == pb.VERIFY_CODE_VALID, 99
            flight, batch = self.send(batcher)
            batcher.answered(batch, response)
            assert isinstance(flight.future.result(0), Failure)
            assert flight.future.result(0).kind is Unavailable
            assert len(cache) == 0
        response = valid()
        response.revision = 100
        flight, batch = self.send(batcher)
        batcher.answered(batch, response)
        assert (flight.future.result(0).code, len(cache)) == (Code.VALID, 1)

    def test_a_key_that_is_not_proven(self, batcher: Batcher, cache: Cache, passing: Clock) -> None:
        """An answer that proves no key is about no key's changes."""
        self.change(cache, passing, 100)
        flight, batch = self.send(batcher)
        batcher.answered(batch, pb.VerifyResponse(code=pb.VERIFY_CODE_NOT_FOUND))
        assert flight.future.result(0).code is Code.NOT_FOUND

    def test_a_change_of_another_key(self, batcher: Batcher, cache: Cache, passing: Clock) -> None:
        """Each key has its own revision."""
        self.change(cache, passing, 100, key=key_of(2))
        flight, batch = self.send(batcher)
        batcher.answered(batch, valid())
        assert (flight.future.result(0).code, len(cache)) == (Code.VALID, 1)

    def test_a_change_during_the_call(self, batcher: Batcher, cache: Cache, passing: Clock) -> None:
        """The answer counts for those who asked before the change, and is not cached."""
        flight, batch = self.send(batcher)
        self.change(cache, passing, 100)
        batcher.answered(batch, valid())
        assert (flight.future.result(0).code, len(cache)) == (Code.VALID, 0)

    @pytest.mark.parametrize("is_sent", [False, True])
    def test_a_reset(self, batcher: Batcher, cache: Cache, passing: Clock, is_sent: bool) -> None:
        """After an older backup was restored, revisions count from there again."""
        self.change(cache, passing, 100)
        if is_sent:
            flight, batch = self.send(batcher)
        self.change(cache, passing, reset=True)
        if not is_sent:
            flight, batch = self.send(batcher)
        batcher.answered(batch, valid())
        assert flight.future.result(0).code is Code.VALID

    def test_a_refused_cursor(self, batcher: Batcher, cache: Cache, passing: Clock) -> None:
        """A server that does not know the cursor does not know the changes before it either."""
        self.change(cache, passing, 100)
        flight, batch = self.send(batcher)
        repeated = batcher.failed(batch, grpc.StatusCode.INVALID_ARGUMENT, "consistency")
        assert repeated is not None
        batcher.answered(repeated, valid())
        assert (flight.future.result(0).code, cache.cursor) == (Code.VALID, "")


class TestOddTimes:
    """Times and cursors that no server should send."""

    @pytest.mark.parametrize(
        "age",
        [
            {"nanos": -1},
            {"seconds": -1},
            {"seconds": -(2**63), "nanos": -(2**31)},
            {"seconds": 1},
            {"seconds": 2**63 - 1, "nanos": 2**31 - 1},
        ],
        ids=str,
    )
    def test_an_impossible_age(self, cache: Cache, passing: Clock, age: dict[str, int]) -> None:
        """A heartbeat that is older than its stream, or from the future, ends freshness and the stream."""
        message = pb.WatchResponse(cursor="new", stream_age=Duration(**age))
        assert not cache.apply(message, False, passing())
        assert cache.fresh_until < passing()

    @pytest.mark.parametrize("ttl", [-1, -(2**63), 2**63 - 1], ids=str)
    def test_an_impossible_lifetime(self, cache: Cache, passing: Clock, ttl: int) -> None:
        """A negative one means that the answer is not cached. The longest overflows nothing."""
        cache.invalidate()
        deliver(cache, passing, "new")
        response = valid()
        response.cache_ttl.seconds = ttl
        answer = read_answer(response, KEY, Demand(), passing())
        assert answer.verdict(Demand(), passing(), was_sent=True)
        cache.store(KEY, answer, cache.position())
        assert len(cache) == (ttl > 0)

    def test_messages_without_a_cursor(self, settings: Settings, passing: Clock) -> None:
        """They keep the cursor that is known. While there is none, nothing is cached."""
        cache = Cache(settings, passing)
        deliver(cache, passing, "")
        store(cache, passing, cache.position())
        assert (len(cache), cache.fresh_until > passing()) == (0, True)
        deliver(cache, passing, "new")
        deliver(cache, passing, "")
        cache.apply(pb.WatchResponse(reset=True), False, passing())
        assert cache.cursor == "new"
        store(cache, passing, cache.position())
        assert len(cache) == 1


@pytest.mark.parametrize("code", [pb.VERIFY_CODE_MALFORMED, pb.VERIFY_CODE_NOT_FOUND])
def test_the_time_of_a_key_that_is_not_proven(code: Any) -> None:
    """Nothing depends on the check_time of such an answer."""
    response = pb.VerifyResponse(code=code)
    response.check_time.seconds = 2**62
    assert read_answer(response, KEY, Demand(), 0).code == code
