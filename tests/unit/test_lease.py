"""The lease: one process acts, another takes over if it falls silent, and a replaced one writes nothing."""

import time
from collections.abc import Callable

import apsw
import pytest

from tests.domain import new_store
from tests.harness import FrozenClock
from tumbler_server.clock import SECOND
from tumbler_server.defaults import SCHEDULER_LEASE
from tumbler_server.errors import StoreUnavailable
from tumbler_server.scheduler.acting import Acting
from tumbler_server.store.database import Store
from tumbler_server.store.lease import Lease, LeaseLost
from tumbler_server.store.models import LeaseRow


class Process:
    """A process with its own lease and monotonic clock."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.monotonic = FrozenClock(0)
        self.lease = Lease(store, name, SCHEDULER_LEASE, self.monotonic)

    def live(self, seconds: int) -> bool:
        """Let this much time pass in a process that renews its lease every second."""
        for _ in range(seconds):
            self.monotonic.advance(SECOND)
            self.lease.keep()
        return self.lease.held

    def writes(self) -> bool:
        """Return whether the process may write."""
        try:
            self.store.write_serialized(self.lease.guard)
        except LeaseLost:
            return False
        return True


@pytest.fixture
def one(store: Store) -> Process:
    """Return a process that holds the lease."""
    process = Process(store, "one")
    assert process.lease.keep()
    return process


@pytest.fixture
def other(one: Process) -> Process:
    """Return a second process on the same database that has seen the first."""
    process = Process(one.store, "other")
    assert not process.lease.keep()
    return process


def together(processes: tuple[Process, ...], seconds: int) -> None:
    """Let time pass for several processes."""
    for _ in range(seconds):
        for process in processes:
            process.live(1)


class TestLease:
    """Which process holds the lease."""

    def test_kept(self, one: Process, other: Process) -> None:
        """A holder that renews the lease keeps it for hours."""
        together((one, other), 3_600)
        assert (one.lease.held, other.lease.held) == (True, False)
        assert one.lease.term == 1

    @pytest.mark.usefixtures("one")
    def test_taken_over(self, other: Process) -> None:
        """A holder that is silent for the whole span is replaced, and no sooner."""
        assert not other.live(SCHEDULER_LEASE // SECOND - 1)
        assert other.live(1)
        assert other.lease.term == 2

    def test_no_two(self, one: Process) -> None:
        """A stopped holder gives up the lease before another process can have it."""
        one.monotonic.advance(SCHEDULER_LEASE * 2 // 3)
        assert not one.lease.held

    def test_replaced_meanwhile(self, one: Process, other: Process) -> None:
        """A holder that was suspended and replaced may not write when it continues."""
        other.live(SCHEDULER_LEASE // SECOND)
        assert one.lease.held, "by its own clock, which stood still with it"
        assert not one.writes()
        assert not one.lease.held
        assert other.writes()

    def test_back_again(self, one: Process, other: Process) -> None:
        """A replaced process waits like any other, and takes over in its turn."""
        other.live(SCHEDULER_LEASE // SECOND)
        assert not one.live(6)
        together((one, other), 60)
        assert (one.lease.held, other.lease.held) == (False, True)
        assert one.live(SCHEDULER_LEASE // SECOND + 1)
        assert one.lease.term == 3

    def test_handed_over(self, one: Process, other: Process) -> None:
        """A released lease is taken at once."""
        one.lease.release()
        assert other.live(1)

    @pytest.mark.usefixtures("other")
    def test_followed(self, one: Process) -> None:
        """A restarted process of the same name takes the lease at once, and the old one can no longer write."""
        follower = Process(one.store, "one")
        assert follower.lease.keep()
        assert follower.lease.term == 2
        assert not one.writes()

    def test_two_at_once(self, one: Process, other: Process) -> None:
        """If two processes find the lease free at the same time, one gets it."""
        third = Process(one.store, "third")
        third.lease.keep()
        one.lease.release()
        assert sorted((other.live(1), third.live(1))) == [False, True]

    @pytest.mark.usefixtures("other")
    def test_database_away(self, one: Process, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the database the holder stops acting in time; afterwards it continues if it was not replaced."""
        with monkeypatch.context() as away:

            def fail(*_: object) -> None:
                raise StoreUnavailable

            away.setattr(one.store, "write_serialized", fail)
            for _ in range(SCHEDULER_LEASE // SECOND):
                one.monotonic.advance(SECOND)
                if one.monotonic.now % (3 * SECOND) == 0:
                    with pytest.raises(StoreUnavailable):
                        one.lease.keep()
            assert not one.lease.held
        assert one.live(1)
        assert one.writes()

    def test_in_its_own_transaction(self, one: Process) -> None:
        """A transaction that finds the lease lost writes nothing."""
        other = Process(one.store, "other")
        other.lease.keep()
        other.live(SCHEDULER_LEASE // SECOND)

        def work(transaction: object) -> None:
            transaction.run(LeaseRow.update(beat=99))  # type: ignore[attr-defined]
            one.lease.guard(transaction)  # type: ignore[arg-type]

        with pytest.raises(LeaseLost):
            one.store.write_serialized(work)
        (row,) = one.store.select(LeaseRow.select())
        assert row.beat < 99


class Task:
    """A duty that records its work, and may raise."""

    def __init__(self, name: str, done: list[str], failure: Exception | None = None, parts: int = 1) -> None:
        self.name, self.done, self.failure, self.parts = name, done, failure, parts

    def work(self, _: Lease) -> bool:
        self.done.append(self.name)
        if self.failure:
            raise self.failure
        self.parts -= 1
        return self.parts > 0


class TestTurn:
    """What a process does while it holds the lease."""

    def test_all(self, one: Process) -> None:
        """Each duty runs once per turn, and the turn returns whether one has more to do."""
        done: list[str] = []
        acting = Acting(
            one.lease, (Task("a", done, parts=2), Task("b", done)), SCHEDULER_LEASE, monotonic=one.monotonic
        )
        assert acting.turn()
        assert not acting.turn()
        assert done == ["a", "b"] * 2

    def test_without_the_lease(self, other: Process) -> None:
        """A process without the lease does nothing."""
        done: list[str] = []
        assert not Acting(other.lease, (Task("a", done),), SCHEDULER_LEASE, monotonic=other.monotonic).turn()
        assert done == []

    def test_lost_in_the_middle(self, one: Process) -> None:
        """Once the lease is lost, no further duty begins."""
        done: list[str] = []
        acting = Acting(
            one.lease, (Task("a", done, LeaseLost()), Task("b", done)), SCHEDULER_LEASE, monotonic=one.monotonic
        )
        assert not acting.turn()
        assert done == ["a"]

    def test_ends_while_the_database_is_held(self, new_database: Callable[[str], str]) -> None:
        """While another process holds SQLite's write lock, closing takes less than 4 s, and the lease expires."""
        url = new_database("sqlite")
        store = new_store(url)
        lease = Process(store, "one").lease
        acting = Acting(lease, (), SCHEDULER_LEASE)
        assert acting.turn() or lease.keep()
        holder = apsw.Connection(url.removeprefix("sqlite:///"))
        holder.execute("BEGIN IMMEDIATE")
        acting.start()
        time.sleep(0.3)
        began = time.monotonic()
        acting.close()
        assert time.monotonic() - began < 4
        holder.close()
        store.close()
