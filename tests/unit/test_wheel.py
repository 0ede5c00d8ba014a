"""The wheel of due times."""

from tumbler_server.clock import HOUR, SECOND
from tumbler_server.streams.wheel import TICK, Wheel


def test_due_in_time() -> None:
    """An entry is due at its instant, never later, and at most a tick earlier."""
    wheel: Wheel[int] = Wheel(now=0)
    dues = {number: 10 * SECOND + number * 7_919 for number in range(100)}
    for entry, due in dues.items():
        wheel.put(entry, due)
    seen: dict[int, int] = {}
    for now in range(0, 12 * SECOND, TICK // 3):
        for entry in wheel.due(now):
            assert entry not in seen
            seen[entry] = now
    assert seen.keys() == dues.keys()
    assert all(-TICK <= seen[entry] - due <= TICK // 3 for entry, due in dues.items())


def test_moved() -> None:
    """An entry that is put again is due at the newer time only."""
    wheel: Wheel[str] = Wheel(now=0)
    wheel.put("one", SECOND)
    wheel.put("one", 3 * SECOND)
    assert wheel.due(2 * SECOND) == []
    assert wheel.due(3 * SECOND) == ["one"]


def test_dropped() -> None:
    """A dropped entry is never due, and nothing of it remains."""
    wheel: Wheel[str] = Wheel(now=0)
    wheel.put("one", SECOND)
    wheel.put("two", SECOND)
    wheel.drop("one")
    wheel.drop("never there")
    assert len(wheel) == 1
    assert wheel.due(SECOND) == ["two"]
    assert len(wheel) == 0


def test_due_already() -> None:
    """An entry due in the past is due at the next look."""
    wheel: Wheel[str] = Wheel(now=HOUR)
    wheel.put("late", SECOND)
    assert wheel.due(HOUR + TICK) == ["late"]


def test_after_a_long_sleep() -> None:
    """After a long pause, all entries that have become due are returned."""
    wheel: Wheel[int] = Wheel(now=0)
    for number in range(10):
        wheel.put(number, number * 60 * SECOND)
    assert sorted(wheel.due(HOUR)) == list(range(10))
    assert wheel.due(100 * HOUR) == []
    wheel.put(1, 100 * HOUR + SECOND)
    assert wheel.due(100 * HOUR + SECOND) == [1]
