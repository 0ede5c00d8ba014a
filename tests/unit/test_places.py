"""Which streams get a place, and which must give theirs up."""

from dataclasses import dataclass

import pytest

from tumbler_server import limits
from tumbler_server.clock import HOUR, SECOND
from tumbler_server.errors import Overloaded
from tumbler_server.streams.places import Places


@dataclass(eq=False)
class Holder:
    """A fake stream that wants a place."""

    tenant: str
    key_id: str = ""
    interval: int = HOUR


def filled(most: int, *tenants: str) -> tuple[Places[Holder], list[Holder]]:
    """Return places that these tenants have taken in this order."""
    places: Places[Holder] = Places(most)
    holders = [Holder(tenant) for tenant in tenants]
    for holder in holders:
        assert places.take(holder) is None
    return places, holders


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set small maximums: 3 streams per key, 5 per project, 2 heartbeats per second."""
    for name, most in (("WATCH_KEY", 3), ("WATCH_PROJECT", 5), ("WATCH_BEATS", 2)):
        monkeypatch.setattr(limits, name, limits.Limit("", most, "", ""))


@pytest.mark.parametrize(
    ("held", "newcomer", "leaver"),
    [
        ("aaaa", "b", 3),  # the newest stream of the tenant with the most
        ("aaab", "b", 2),  # this still ends at two and two
        ("baab", "c", 3),  # of two tenants with the most, the one that came first
        ("baaa", "b", 3),
    ],
)
def test_who_goes(held: str, newcomer: str, leaver: int) -> None:
    """If all places are taken, a new stream gets the newest place of the tenant with the most."""
    places, holders = filled(4, *held)
    gone = places.take(Holder(newcomer))
    assert gone is holders[leaver]


@pytest.mark.parametrize(
    ("held", "newcomer"), [("aaaa", "a"), ("aabb", "a"), ("aabb", "b"), ("aab", "b"), ("abcd", "e")]
)
def test_who_is_refused(held: str, newcomer: str) -> None:
    """A new stream is refused if its tenant would then have as many as the other had, to avoid an endless exchange."""
    places, _ = filled(len(held), *held)
    with pytest.raises(Overloaded) as refused:
        places.take(Holder(newcomer))
    assert "the server has no room" in refused.value.message
    assert SECOND <= refused.value.retry_after <= 5 * SECOND


def test_a_flood_takes_none_from_others() -> None:
    """However many streams a tenant opens, the others keep theirs and get new ones."""
    places, others = filled(100, *(f"tenant-{number}" for number in range(10)))
    flood = [Holder("flood") for _ in range(90)]
    assert {places.take(holder) for holder in flood} == {None}
    for _ in range(1_000):
        with pytest.raises(Overloaded):
            places.take(Holder("flood"))
    newcomers = [Holder(f"newcomer-{number}") for number in range(30)]
    assert [places.take(holder) for holder in newcomers] == flood[:-31:-1]
    for holder in others:
        places.leave(holder)
        assert places.take(holder) is None


def test_each_key(bounds: None) -> None:
    """A key's streams above its maximum are refused until one ends; the project's other keys are not affected."""
    places: Places[Holder] = Places(100)
    first, *_ = holders = [Holder("acme", "one") for _ in range(3)]
    for holder in holders:
        places.take(holder)
    with pytest.raises(Overloaded, match="calling key has reached its limit of 3 open streams"):
        places.take(Holder("acme", "one"))
    places.take(Holder("acme", "two"))
    places.leave(first)
    places.take(Holder("acme", "one"))
    assert (len(places.of_key("one")), len(places.of_key("two")), len(places.of_key("three"))) == (3, 1, 0)


def test_each_project(bounds: None) -> None:
    """A project's streams above its maximum are refused; another project's are not."""
    places: Places[Holder] = Places(100)
    for number in range(5):
        places.take(Holder("acme", str(number)))
    with pytest.raises(Overloaded, match="project has reached its limit of 5 open streams"):
        places.take(Holder("acme", "5"))
    places.take(Holder("globex", "5"))


def test_heartbeats(bounds: None) -> None:
    """A project's heartbeats per second are limited, however many streams it has."""
    places: Places[Holder] = Places(100)
    often = Holder("acme", "1", SECOND)
    places.take(often)
    places.take(Holder("acme", "2", 2 * SECOND))
    places.take(Holder("acme", "3", 2 * SECOND))
    with pytest.raises(Overloaded, match="use a longer heartbeat_interval"):
        places.take(Holder("acme", "4", 3_600 * SECOND))
    places.take(Holder("globex", "4", SECOND))
    places.leave(often)
    places.take(Holder("acme", "4", SECOND))


def test_as_many_as_the_default_interval_allows() -> None:
    """At the default interval of five seconds a project may open its maximum of streams."""
    assert limits.WATCH_PROJECT.most / 5 <= limits.WATCH_BEATS.most


def test_nothing_stays(bounds: None) -> None:
    """A stream that has left keeps no state, and may leave twice."""
    places: Places[Holder] = Places(3)
    for _ in range(100):
        holders = [Holder("acme", "one", SECOND * 3 // 2), Holder("globex", "two")]
        for holder in holders:
            places.take(holder)
        for holder in holders * 2:
            places.leave(holder)
    assert not places._shares
    assert not places._keys


def test_refused_together_they_do_not_come_back_together() -> None:
    """Refused streams get different retry delays."""
    places, _ = filled(1, "acme")
    advice = set()
    for _ in range(50):
        with pytest.raises(Overloaded) as refused:
            places.take(Holder("acme"))
        advice.add(refused.value.retry_after)
    assert len(advice) > 40
