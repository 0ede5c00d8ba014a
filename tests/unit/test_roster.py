"""Processes that compare the peppers they know."""

from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from tests.domain import PEPPER, Domain
from tests.harness import FrozenClock
from tumbler_server.secrets import roster
from tumbler_server.secrets.pepper import Pepper
from tumbler_server.secrets.roster import GONE, MOST, Roster
from tumbler_server.store.database import Store

OTHER, THIRD = Pepper(b"\x07" * 32), Pepper(b"\x08" * 32)


class Place:
    """An installation's processes, on one clock."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.monotonic = FrozenClock(0)

    def process(self, *peppers: Pepper) -> Roster:
        """Start a process that knows these peppers."""
        return Roster(self.store, [pepper.id for pepper in peppers], FrozenClock(), self.monotonic)


@pytest.fixture
def place(store: Store) -> Place:
    """Return an installation on each kind of database."""
    return Place(store)


def look(process: Roster) -> list[dict[str, Any]]:
    """Have a process look, and return its log lines."""
    with structlog.testing.capture_logs() as logged:
        process.look()
    return [dict(entry) for entry in logged]


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [
        ([PEPPER], [PEPPER], False),
        ([PEPPER, OTHER], [PEPPER, OTHER], False),
        ([PEPPER, OTHER, THIRD], [PEPPER, THIRD, OTHER], False),
        ([], [], False),
        ([PEPPER], [OTHER], True),
        ([PEPPER], [], True),
        ([OTHER, PEPPER], [PEPPER], True),
        ([OTHER, PEPPER], [PEPPER, OTHER], True),
    ],
)
def test_who_differs(place: Place, one: Sequence[Pepper], other: Sequence[Pepper], differ: bool) -> None:
    """Processes that know other peppers, or sign with another, log one line each, and do not repeat it."""
    first, second = place.process(*one), place.process(*other)
    first.look()
    (*told,) = [entry for entry in look(second) if "different peppers" in entry["event"]]
    assert len(told) == differ
    assert [entry["theirs"] for entry in told] == [{first.name: tuple(pepper.id for pepper in one)}] * differ
    assert len(look(first)) == differ
    assert look(second) == look(first) == []


def test_no_pepper_is_told(place: Place, store: Store) -> None:
    """The log and the table contain only the peppers' ids, from which no pepper can be derived."""
    first, second = place.process(PEPPER), place.process(OTHER)
    first.look()
    told = repr(look(second)) + repr(store.read("SELECT * FROM server"))
    for pepper in (PEPPER, OTHER):
        assert pepper.secret.hex() not in told
        assert repr(pepper.secret) not in told
        assert pepper.id in told


def test_who_takes_the_same_file_agrees_again(place: Place) -> None:
    """If a process restarts with the others' peppers, they log that all agree again."""
    first, second = place.process(PEPPER), place.process(OTHER)
    second.look()
    assert look(first)
    second.close()
    place.process(PEPPER).look()
    assert [entry["event"] for entry in look(first)] == ["all servers of this installation have the same peppers again"]


def test_who_died_is_forgotten(place: Place, store: Store) -> None:
    """A process that died without removing its row is dropped after five minutes; a living one never is."""
    first, second, dead = place.process(PEPPER), place.process(PEPPER), place.process(OTHER)
    dead.look()
    for _ in range(4):
        first.look()
        second.look()
        place.monotonic.advance(GONE // 3)
    assert set(roster.known(store)) == {first.name, second.name}
    assert roster.differing([PEPPER.id], roster.known(store)) == {}


def test_who_ends_in_order_leaves_nothing(place: Place, store: Store) -> None:
    """A process that stops removes its own row and no other."""
    first, second = place.process(PEPPER), place.process(PEPPER)
    first.look()
    second.look()
    first.close()
    assert set(roster.known(store)) == {second.name}


def test_rows_are_bounded(place: Place, store: Store) -> None:
    """However many processes start and die, the number of rows is bounded, and a living process restores its row."""
    living = place.process(PEPPER)
    for _ in range(2 * MOST + 3):
        place.process(OTHER).look()
        assert len(roster.known(store)) <= MOST + 1
    living.look()
    assert living.name in roster.known(store)


def test_keys_under_a_pepper_that_is_not_here(place: Place, store: Store, domain: Domain) -> None:
    """A process that lacks a pepper under which keys are signed logs that once, even if no process knows it."""
    domain.create()
    assert roster.signed_under(store) == [PEPPER.id]
    process = place.process(OTHER)
    (told,) = look(process)
    assert told["theirs"] == [PEPPER.id]
    assert "costs bcrypt" in told["event"]
    assert look(process) == []
    assert look(place.process(OTHER, PEPPER)) != [], "it signs first, and the other does not know it"


def test_ids_are_read_without_reading_the_keys(store: Store, domain: Domain) -> None:
    """The peppers in use are found by one index lookup each, however many keys there are."""
    for _ in range(3):
        domain.create()
    if store.dialect == "sqlite":
        plan = store.read(f"EXPLAIN QUERY PLAN {roster.SIGNED}", (MOST,))
        steps = [row[-1] for row in plan if "api_key" in row[-1]]
        assert steps
        assert all("SEARCH api_key USING COVERING INDEX api_key_by_pepper_id" in step for step in steps)
    assert roster.signed_under(store) == [PEPPER.id]
