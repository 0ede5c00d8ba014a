"""Calls of one kind, counted per party and in all."""

import contextlib

import pytest

from tumbler_server.errors import Overloaded, RequestTooSlow, TumblerError
from tumbler_server.rpc.lanes import RETRY
from tumbler_server.rpc.presence import Presence
from tumbler_server.shares import CrowdLimit


class Call:
    """A call in a crowd."""

    def __init__(self, peer: str = "", since: float = 0.0) -> None:
        self.peer, self.since = peer, since
        self.failure: TumblerError | None = None

    def cut(self) -> None:
        """End the call as too slow."""
        self.end(RequestTooSlow(1))

    def end(self, failure: TumblerError) -> None:
        """Record that the call must end."""
        self.failure = failure


@pytest.fixture
def present() -> Presence:
    """Return a crowd of at most three, and two per party."""
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
    """A party has at most its share, and the crowd at most its maximum; a refusal has a retry delay."""
    for party in here:
        present.enter(party, Call())
    for _ in range(3):  # a refused call does not count
        if refused:
            with pytest.raises(Overloaded) as raised:
                present.enter(refused, Call())
            assert raised.value.retry_after == RETRY > 0
    assert len(present) == len(here)
    if welcome:
        present.enter(welcome, Call())


def test_newcomers() -> None:
    """Parties that take all they can leave room for a party without calls."""
    present = Presence(CrowdLimit("test", 1_000, 900))
    for party in range(8):
        for _ in range(1_000):
            with contextlib.suppress(Overloaded):
                present.enter(f"greedy {party}", Call())
        present.enter(f"newcomer {party}", Call())(None)


def test_leaving(present: Presence) -> None:
    """A call that leaves frees a place for its party and for the crowd."""
    leave = [present.enter(party, Call()) for party in "aab"]
    leave[0](None)
    assert len(present) == 2
    present.enter("c", Call())
    leave[1](None)
    present.enter("a", Call())
    assert len(present) == 3


def test_nothing_is_kept(present: Presence) -> None:
    """Nothing is kept of parties that have left or were refused: their names are chosen by callers."""
    for number in range(100):
        leave = present.enter(f"party {number}", Call())
        present.enter("full", Call())(None)
        leave(None)
    full = [present.enter(party, Call()) for party in "aab"]
    for number in range(100):
        with pytest.raises(Overloaded):
            present.enter(f"party {number}", Call())
    for leave in full:
        leave(None)
    assert len(present) == 0
    assert not present._places._of


class TestGivingWay:
    """A crowd of callers without keys, in which waiting calls make room for new ones."""

    LIMIT = CrowdLimit("open", 4, 2, gives_way=True)

    def full(self, known: str = "") -> tuple[Presence, list[Call]]:
        """Return a full crowd of waiting calls, and the calls."""
        present = Presence(self.LIMIT, lambda peer: peer in known)
        calls = [Call(peer) for peer in "abcd"]
        for call in calls:
            present.enter(call.peer, call)
            present.waiting[call] = None
        return present, calls

    def test_who_waits_longest_goes(self) -> None:
        """Each new call ends the one that has waited longest, with a retry delay."""
        present, calls = self.full()
        for number in range(4):
            present.enter("e" if number < 2 else "f", Call())
            assert [bool(call.failure) for call in calls] == [True] * (number + 1) + [False] * (3 - number)
        assert isinstance(calls[0].failure, Overloaded)
        assert calls[0].failure.retry_after == RETRY

    def test_strangers_go_first(self) -> None:
        """Calls on connections with an authenticated caller end last."""
        present, calls = self.full("ab")
        for expected in ([2], [2, 3], [0, 2, 3]):
            present.enter("efg"[len(expected) - 1], Call())
            assert [number for number, call in enumerate(calls) if call.failure] == expected

    def test_the_known_are_not_looked_at_without_end(self) -> None:
        """However many calls are on authenticated connections, a new call checks only a few."""
        looked: list[str] = []
        present = Presence(CrowdLimit("open", 1_000, 1, gives_way=True), lambda peer: not looked.append(peer))
        calls = [Call(f"{number}") for number in range(1_000)]
        for call in calls:
            present.enter(call.peer, call)
            present.waiting[call] = None
        present.enter("newcomer", Call())
        assert len(looked) <= 16
        assert sum(bool(call.failure) for call in calls) == 1

    def test_who_does_not_take_its_answer_goes_too(self) -> None:
        """The call that has held its place longest ends, whether it waits or its answer is unread."""
        present = Presence(self.LIMIT)
        waits = [Call("a", since=2.0), Call("b", since=4.0)]
        unread = [Call("c", since=1.0), Call("d", since=3.0)]
        for call in (*waits, *unread):
            present.enter(call.peer, call)
        present.waiting.update(dict.fromkeys(waits))
        present.unread.update(dict.fromkeys(unread))
        for expected in ("c", "ac", "acd", "abcd"):
            present.enter(f"newcomer {expected}", Call())
            assert sorted(call.peer for call in (*waits, *unread) if call.failure) == list(expected)

    def test_nobody_goes_for_one_of_too_many(self) -> None:
        """No call ends for a party that has its share, and no busy call ends at all."""
        present, calls = self.full()
        present.enter("e", Call())
        present.enter("e", Call())
        gone = sum(bool(call.failure) for call in calls)
        with pytest.raises(Overloaded):
            present.enter("e", Call())
        present.waiting.clear()
        with pytest.raises(Overloaded):
            present.enter("f", Call())
        assert sum(bool(call.failure) for call in calls) == gone == 2

    def test_no_other_crowd_gives_way(self, present: Presence) -> None:
        """In a crowd of callers with keys, no call ends for another."""
        calls = [Call() for _ in "abc"]
        for party, call in zip("abc", calls, strict=True):
            present.enter(party, call)
            present.waiting[call] = None
        with pytest.raises(Overloaded):
            present.enter("d", Call())
        assert not any(call.failure for call in calls)


@pytest.mark.parametrize("what", ["waiting", "unread"])
def test_ending(present: Presence, what: str) -> None:
    """Calls that have waited since an instant, or longer, are ended once; calls that have left are not."""
    calls = [Call(since=float(number)) for number in range(3)]
    leave = [present.enter(party, call) for party, call in zip("abc", calls, strict=True)]
    getattr(present, what).update(dict.fromkeys(calls))

    def end(since: float) -> None:
        if what == "waiting":
            present.end_waiting(since, RequestTooSlow(1))
        else:
            present.cut_unread(since)

    end(0.5)
    assert [bool(call.failure) for call in calls] == [True, False, False]
    calls[0].failure = None
    if what == "unread":
        leave[1](None)
        end(2.0)
        assert [bool(call.failure) for call in calls] == [False, False, True]
    assert calls[0].failure is None


def test_each_call_has_its_own_failure(present: Presence) -> None:
    """Calls that end together do not share an exception: each adds its frames to it, and clears them."""
    for party in "ab":
        call = Call(party)
        present.enter(party, call)
        present.waiting[call] = None
    waiting = list(present.waiting)
    failure = RequestTooSlow(3)
    present.end_waiting(1.0, failure)
    first, second = (call.failure for call in waiting)
    assert isinstance(first, RequestTooSlow)
    assert first is not second
    assert (str(first), first.detail) == (str(second), second.detail) == (str(failure), failure.detail)
