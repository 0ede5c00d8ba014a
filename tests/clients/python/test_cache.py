"""When a refused cursor is dropped, and which answers are cached after that."""

import logging

import grpc
import pytest

from tests.clients.python.conftest import Clock
from tests.clients.python.fake_server import NOW, key_of
from tests.clients.python.test_batcher import join
from tumbler._batcher import Batcher
from tumbler._cache import Cache, Position, read_answer
from tumbler._settings import Settings
from tumbler.decide import Code, Demand
from tumbler.v1 import api_key_service_pb2 as pb

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
