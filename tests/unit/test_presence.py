"""Calls of one kind, counted by party and in all."""

import contextlib

import pytest

from tumbler_server.errors import Overloaded
from tumbler_server.rpc.lanes import RETRY
from tumbler_server.rpc.presence import Presence
from tumbler_server.shares import CrowdLimit


@pytest.fixture
def present() -> Presence:
    """Give a crowd of three at most, and two of a party."""
    return Presence(CrowdLimit("test", 3, 2))


@pytest.mark.parametrize(
    ("here", "refused", "welcome"),
    [
        ("aa", "a", "b"),
        ("aab", "c", None),
        ("abc", "a", None),
        ("", None, "a"),
    ],
    ids=["a party's share", "all places, for a newcomer", "all places, for one of them", "nobody is here"],
)
def test_bounds(present: Presence, here: str, refused: str | None, welcome: str | None) -> None:
    """A party has its share at most, and all together no more than there may be; who is refused hears when to come."""
    for party in here:
        present.enter(party)
    for _ in range(3):  # who is refused counts for nothing
        if refused:
            with pytest.raises(Overloaded) as raised:
                present.enter(refused)
            assert raised.value.retry_after == RETRY > 0
    assert len(present) == len(here)
    if welcome:
        present.enter(welcome)


def test_newcomers() -> None:
    """Parties that take all they can get leave room: one that has nothing yet finds a place."""
    present = Presence(CrowdLimit("test", 1_000, 900))
    for party in range(8):
        for _ in range(1_000):
            with contextlib.suppress(Overloaded):
                present.enter(f"greedy {party}")
        present.enter(f"newcomer {party}")(None)


def test_leaving(present: Presence) -> None:
    """Who leaves makes room for its party and for all."""
    leave = [present.enter(party) for party in "aab"]
    leave[0](None)
    assert len(present) == 2
    present.enter("c")
    leave[1](None)
    present.enter("a")
    assert len(present) == 3


def test_nothing_is_kept(present: Presence) -> None:
    """Of who came, was refused and left nothing is kept: names are the callers' to choose."""
    for number in range(100):
        leave = present.enter(f"party {number}")
        present.enter("full")(None)
        leave(None)
    full = [present.enter(party) for party in "aab"]
    for number in range(100):
        with pytest.raises(Overloaded):
            present.enter(f"party {number}")
    for leave in full:
        leave(None)
    assert len(present) == 0
    assert not present._of
