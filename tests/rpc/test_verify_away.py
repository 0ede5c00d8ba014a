"""Verify without the database: never a stale VALID, unless the operator prefers stale answers to none."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.harness import World, at
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import metrics
from tumbler_server.clock import MINUTE, SECOND
from tumbler_server.errors import StoreUnavailable


@pytest.fixture
def away(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes the service's database unavailable."""

    def fail(*_: Any) -> Any:
        raise StoreUnavailable

    def take() -> None:
        monkeypatch.setattr(world.core.store, "read", fail)
        if world.core.store.version() is not None:
            monkeypatch.setattr(world.core.store, "version", fail)

    return take


def unavailable(world: World, key: str, **fields: Any) -> bool:
    """Return whether Verify is UNAVAILABLE with STORE_UNAVAILABLE."""
    refused = world.refused("Verify", pb.VerifyRequest(key=key, **fields))
    return (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


def stale_answers() -> float:
    """Return how many stale answers have been counted."""
    (family,) = metrics.STALE_ANSWERS.collect()
    return family.samples[0].value


def test_denied_by_default(world: World, away: Callable[[], None]) -> None:
    """Beyond the staleness bound, every Verify is unavailable, for cached and uncached keys."""
    created = world.create()
    assert world.verdict(created.key) == "VALID"
    away()
    world.let_lapse()
    assert unavailable(world, created.key)
    assert unavailable(world, world.operator)


def test_a_typing_error_needs_no_database(world: World, away: Callable[[], None]) -> None:
    """A malformed key is MALFORMED even without the database, if the caller is cached."""
    world.reopen(stale_if_error=MINUTE)
    world.verdict(world.operator)
    away()
    assert world.verdict("garbage") == "MALFORMED"


def test_a_caller_without_a_key_needs_no_database(world: World, away: Callable[[], None]) -> None:
    """A malformed credential is UNAUTHENTICATED even without the database."""
    away()
    world.let_lapse()
    assert world.refused("List", pb.ListRequest(), "garbage").reason == "UNAUTHENTICATED"


class TestStaleIfError:
    """``--stale-if-error``."""

    @pytest.fixture(autouse=True)
    def opt_in(self, world: World) -> None:
        """Set ``--stale-if-error`` to a minute."""
        world.reopen(stale_if_error=MINUTE)

    def test_goes_on(self, world: World, away: Callable[[], None]) -> None:
        """A cached key gets a verdict with the check_time of the last confirmed position and without a cache_ttl."""
        created = world.create()
        fresh = world.verify(created.key)
        assert fresh.HasField("cache_ttl")
        counted = stale_answers()
        away()
        world.let_lapse()
        world.clock.advance(2 * SECOND + 1)
        answer = world.verify(created.key)
        assert answer.valid
        assert answer.check_time == fresh.check_time
        assert not answer.HasField("cache_ttl")
        assert stale_answers() > counted

    def test_no_longer_than_was_said(self, world: World, away: Callable[[], None]) -> None:
        """After the staleness bound and the minute, Verify is unavailable."""
        created = world.create()
        world.verify(created.key)
        away()
        world.monotonic.advance(2 * SECOND + MINUTE)
        assert world.verdict(created.key) == "VALID"
        world.monotonic.advance(1)
        assert unavailable(world, created.key)

    def test_nobody_new(self, world: World, away: Callable[[], None]) -> None:
        """An uncached key cannot be verified."""
        created = world.create()
        world.verdict(world.operator)
        away()
        assert unavailable(world, created.key)

    def test_the_clock_still_counts(self, world: World, away: Callable[[], None]) -> None:
        """Expiry is decided by the current time, not by the time of the last confirmed position."""
        created = world.create(expire_time=at(world.clock() + SECOND))
        assert world.verdict(created.key) == "VALID"
        away()
        world.let_lapse()
        world.clock.advance(SECOND)
        assert world.verdict(created.key) == "EXPIRED"

    def test_not_against_a_stricter_wish(self, world: World, away: Callable[[], None]) -> None:
        """A fully consistent Verify gets no stale answer."""
        created = world.create()
        world.verify(created.key)
        away()
        world.let_lapse()
        assert unavailable(world, created.key, consistency={"fully_consistent": True})

    def test_what_was_known_stays(self, world: World, away: Callable[[], None]) -> None:
        """A revocation that this server has seen stays in force."""
        created = world.create()
        world.verify(created.key)
        world.revoke(created.api_key.id)
        assert world.verdict(created.key) == "REVOKED"
        away()
        world.let_lapse()
        assert world.verdict(created.key) == "REVOKED"
