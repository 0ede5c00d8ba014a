"""Verify while the database is away: never a stale "valid", unless an operator chose to be late rather than down."""

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
    """Give what takes the service's database away."""

    def fail(*_: Any) -> Any:
        raise StoreUnavailable

    def take() -> None:
        monkeypatch.setattr(world.core.store, "read", fail)
        if world.core.store.version() is not None:
            monkeypatch.setattr(world.core.store, "version", fail)

    return take


def unavailable(world: World, key: str, **fields: Any) -> bool:
    """Say whether a Verify was refused since the database does not answer."""
    refused = world.refused("Verify", pb.VerifyRequest(key=key, **fields))
    return (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


def stale_answers() -> float:
    """Return how many answers were counted as stale so far."""
    (family,) = metrics.STALE_ANSWERS.collect()
    return family.samples[0].value


def test_denied_by_default(world: World, away: Callable[[], None]) -> None:
    """Past the bound nobody is let in, known or not."""
    created = world.create()
    assert world.verdict(created.key) == "VALID"
    away()
    world.let_lapse()
    assert unavailable(world, created.key)
    assert unavailable(world, world.operator)


def test_a_typing_error_needs_no_database(world: World, away: Callable[[], None]) -> None:
    """A text that is no key is MALFORMED all the same, once the caller is proven."""
    world.reopen(stale_if_error=MINUTE)
    world.verdict(world.operator)
    away()
    assert world.verdict("garbage") == "MALFORMED"


def test_a_caller_without_a_key_needs_no_database(world: World, away: Callable[[], None]) -> None:
    """A credential that is no key is UNAUTHENTICATED all the same."""
    away()
    world.let_lapse()
    assert world.refused("List", pb.ListRequest(), "garbage").reason == "UNAUTHENTICATED"


class TestStaleIfError:
    """``--stale-if-error``."""

    @pytest.fixture(autouse=True)
    def opt_in(self, world: World) -> None:
        """Have the operator opt in to a minute."""
        world.reopen(stale_if_error=MINUTE)

    def test_goes_on(self, world: World, away: Callable[[], None]) -> None:
        """A known key is answered, as of when the position was last confirmed, and may not be cached by the client."""
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
        """After the bound and the minute nobody is let in."""
        created = world.create()
        world.verify(created.key)
        away()
        world.uptime.advance(2 * SECOND + MINUTE)
        assert world.verdict(created.key) == "VALID"
        world.uptime.advance(1)
        assert unavailable(world, created.key)

    def test_nobody_new(self, world: World, away: Callable[[], None]) -> None:
        """A key that is not known cannot be proven."""
        created = world.create()
        world.verdict(world.operator)
        away()
        assert unavailable(world, created.key)

    def test_the_clock_still_counts(self, world: World, away: Callable[[], None]) -> None:
        """Expiry is decided by the present instant, not by when the position was confirmed."""
        created = world.create(expire_time=at(world.clock() + SECOND))
        assert world.verdict(created.key) == "VALID"
        away()
        world.let_lapse()
        world.clock.advance(SECOND)
        assert world.verdict(created.key) == "EXPIRED"

    def test_not_against_a_stricter_wish(self, world: World, away: Callable[[], None]) -> None:
        """Whoever asks for every change is not given less."""
        created = world.create()
        world.verify(created.key)
        away()
        world.let_lapse()
        assert unavailable(world, created.key, consistency={"fully_consistent": True})

    def test_what_was_known_stays(self, world: World, away: Callable[[], None]) -> None:
        """A revocation that this server knew of is not forgotten."""
        created = world.create()
        world.verify(created.key)
        world.revoke(created.api_key.id)
        assert world.verdict(created.key) == "REVOKED"
        away()
        world.let_lapse()
        assert world.verdict(created.key) == "REVOKED"
