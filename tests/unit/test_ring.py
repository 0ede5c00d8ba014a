"""The newest events, in memory."""

import pytest

from tumbler_server.events.log import Event, EventType
from tumbler_server.events.ring import Ring


def event(revision: int) -> Event:
    """Return an event in which only the revision matters."""
    return Event(revision, EventType.UPDATED, "0" * 16, "acme", "", 0, "", "", "{}", "", "", b"", b"")


def filled(first: int, last: int, size: int = 10) -> Ring:
    """Return a ring to which the events from ``first`` to ``last`` were added one by one."""
    ring = Ring(first - 1, size)
    for revision in range(first, last + 1):
        ring.extend([event(revision)])
    return ring


def after(ring: Ring, revision: int, limit: int = 100) -> list[int] | None:
    """Return the revisions of the events after a revision."""
    found = ring.after(revision, limit)
    return None if found is None else [each.revision for each in found]


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        (4, None),  # the events before the first were never in the ring
        (5, [6, 7, 8]),
        (6, [7, 8]),
        (8, []),
        (9, None),  # beyond the log's end
    ],
)
def test_what_comes_after_a_revision(revision: int, expected: list[int] | None) -> None:
    """The ring returns all events after a revision in order, or None if it does not hold them all."""
    assert after(filled(6, 8), revision) == expected


def test_the_first_come_first() -> None:
    """With a limit, the first events after the revision are returned."""
    assert after(filled(1, 8), 2, limit=3) == [3, 4, 5]


def test_the_oldest_go() -> None:
    """A full ring drops its oldest events, and returns None for a range that needs them."""
    ring = filled(1, 25, size=10)
    assert after(ring, 15) == list(range(16, 26))
    assert after(ring, 14) is None


def test_many_at_once() -> None:
    """If more events are added at once than fit, the newest are kept."""
    ring = Ring(0, size=3)
    ring.extend([event(revision) for revision in range(1, 8)])
    assert after(ring, 4) == [5, 6, 7]
    assert after(ring, 3) is None


def test_large_events() -> None:
    """The ring keeps the newest large events that fit in its memory."""
    ring = Ring(0, size=1_000, most_memory=100_000)
    for revision in range(1, 51):
        ring.extend([event(revision)._replace(detail_json="x" * 9_000)])
        assert ring.memory <= 100_000
    assert after(ring, 40) == list(range(41, 51))
    assert after(ring, 39) is None
    ring.restart(50)
    assert ring.memory == 0


def test_an_empty_ring_knows_its_place() -> None:
    """An empty ring has no events after its position, and returns None for any other."""
    ring = Ring(7)
    assert (after(ring, 7), after(ring, 6), after(ring, 8)) == ([], None, None)


def test_a_restart_forgets_all() -> None:
    """A ring restarted at an earlier position forgets its events, and continues from there."""
    ring = filled(1, 8)
    ring.restart(5)
    assert (after(ring, 5), after(ring, 4), after(ring, 8)) == ([], None, None)
    ring.extend([event(6)])
    assert after(ring, 5) == [6]
