"""Long answers that have not been read, counted in bytes."""

import contextlib
from collections.abc import Callable

import pytest

from tumbler_server import shares
from tumbler_server.errors import Overloaded
from tumbler_server.limits import Limit
from tumbler_server.rpc.unsent import Unsent


class Sending:
    """A call whose answer is being sent."""

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        """Take what is to be called once the answer has been taken."""
        self.done = callback


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let four bytes be a long answer, a project have 20 of them unread, and all have 50."""
    for name, most in (("LONG_ANSWER", 3), ("UNREAD_OF_A_PROJECT", 20), ("UNREAD", 50)):
        monkeypatch.setattr(shares, name, Limit(name, most, "bytes", ""))


def fill(unsent: Unsent, project_id: str, size: int) -> list[Sending]:
    """Have a project leave as many answers unread as it can."""
    held = []
    with contextlib.suppress(Overloaded):
        while True:
            sending = Sending()
            unsent.hold(project_id, b"x" * size, sending)
            held.append(sending)
    return held


def test_a_project() -> None:
    """A project gets no more once it has its share unread, and others do; what is read makes room."""
    unsent = Unsent()
    held = fill(unsent, "acme", 5)
    assert len(held) == 4
    with pytest.raises(Overloaded, match="have not been read") as refused:
        unsent.check("acme")
    assert refused.value.retry_after > 0
    unsent.check("globex")
    held[0].done(None)
    unsent.check("acme")
    for each in held[1:]:
        each.done(None)
    assert not unsent._of
    assert not unsent._bytes


def test_all() -> None:
    """However many projects leave their answers unread, what is kept has a bound, and one that has none finds room."""
    unsent = Unsent()
    for number in range(20):
        fill(unsent, f"greedy {number}", 4)
    assert 50 - 4 <= unsent._bytes < 50 + 4
    assert len(unsent._of) > 3


def test_short() -> None:
    """Short answers are not counted: they are bounded by the number of calls."""
    unsent = Unsent()
    for _ in range(100):
        unsent.hold("acme", b"xxx", Sending())
    unsent.check("acme")
