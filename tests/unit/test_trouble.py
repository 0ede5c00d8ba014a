"""Log lines about a lasting failure."""

import pytest
import structlog

from tests.harness import FrozenClock
from tumbler_server.clock import MINUTE, SECOND
from tumbler_server.trouble import AGAIN, QUIET, Trouble

WHAT = "the database cannot be used"


@pytest.fixture
def monotonic() -> FrozenClock:
    """Return the clock that times the failure."""
    return FrozenClock(0)


@pytest.fixture
def trouble(monotonic: FrozenClock) -> Trouble:
    """Return a Trouble that has not begun."""
    return Trouble(WHAT, monotonic)


def test_a_line_as_it_begins(trouble: Trouble) -> None:
    """The first failure is logged with its details; those right after it are not."""
    with structlog.testing.capture_logs() as logged:
        for _ in range(1_000):
            trouble.met(reason="disk full")
    assert logged == [{"event": WHAT, "reason": "disk full", "log_level": "warning"}]
    assert trouble.lasts


def test_a_line_a_minute_and_one_as_it_ends(trouble: Trouble, monotonic: FrozenClock) -> None:
    """A lasting failure is logged once a minute, with its duration, count and newest reason, and at its end."""
    with structlog.testing.capture_logs() as logged:
        for second in range(3 * 60 + 1):
            monotonic.now = second * SECOND
            trouble.met(reason=f"after {second}")
        trouble.passed()
        monotonic.advance(QUIET)
        trouble.passed()
        trouble.passed()
    assert [(entry["event"], entry.get("reason"), entry.get("lasts_s"), entry.get("failures")) for entry in logged] == [
        (WHAT, "after 0", None, None),
        (f"still: {WHAT}", "after 60", 60, 61),
        (f"still: {WHAT}", "after 120", 120, 121),
        (f"still: {WHAT}", "after 180", 180, 181),
        (f"over: {WHAT}", None, None, 181),
    ]
    assert logged[-1]["lasted_s"] == 180
    assert not trouble.lasts


def test_what_fails_now_and_then(trouble: Trouble, monotonic: FrozenClock) -> None:
    """An intermittent failure is over only after nothing has failed for some seconds."""
    with structlog.testing.capture_logs() as logged:
        for _ in range(50):
            trouble.met()
            trouble.passed()
            monotonic.advance(SECOND)
            trouble.passed()
    assert [entry["event"] for entry in logged] == [WHAT]


def test_again(trouble: Trouble, monotonic: FrozenClock) -> None:
    """After its end a new failure is logged as the first one was."""
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            trouble.met()
            monotonic.advance(QUIET)
            trouble.passed()
    assert [entry["event"] for entry in logged] == [WHAT, f"over: {WHAT}"] * 2
    assert [entry.get("failures") for entry in logged] == [None, 1] * 2


def test_no_trouble(trouble: Trouble) -> None:
    """Success is not logged."""
    with structlog.testing.capture_logs() as logged:
        trouble.passed()
    assert logged == []
    assert (AGAIN, trouble.lasts) == (MINUTE, False)
