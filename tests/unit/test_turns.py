"""Turns at writing: first in, first out, urgent changes first, and nothing for a caller that has gone."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.domain import OPERATOR, Domain
from tests.unit.test_database import count_up
from tumbler_server import calls
from tumbler_server.calls import Call
from tumbler_server.clock import SECOND
from tumbler_server.errors import CallerGone, KeyNotFound, StoreUnavailable
from tumbler_server.store.bound import Bound
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.store.models import LogHeadRow
from tumbler_server.store.turns import Gate, Turns


class Crowd:
    """Threads that queue for a turn, and the order in which they had it."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.had: list[str] = []
        self._threads = ThreadPoolExecutor(20)

    def come(self, name: str, urgent: bool = False, seconds: float = 10.0, call: Call | None = None) -> Future[None]:
        """Queue a thread, and return once it is in the queue."""
        queue = self.turns._urgent if urgent else self.turns._others
        before = len(queue)

        def work() -> None:
            with calls.serving(call), self.turns.turn(Bound(seconds), urgent):
                self.had.append(name)

        future = self._threads.submit(work)
        pause = threading.Event()
        while len(queue) == before and not future.done():
            pause.wait(0.001)
        return future

    def close(self) -> None:
        self._threads.shutdown()


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """Yield a crowd with an empty queue."""
    crowd = Crowd(Turns())
    yield crowd
    crowd.close()


class TestTurns:
    """The queue within a process."""

    def test_first_come_first_served(self, crowd: Crowd) -> None:
        """Turns are first in, first out."""
        with crowd.turns.turn(Bound(1)):
            waiting = [crowd.come(str(number)) for number in range(5)]
        for future in waiting:
            future.result()
        assert crowd.had == ["0", "1", "2", "3", "4"]

    def test_urgent(self, crowd: Crowd) -> None:
        """Urgent changes go before all others, and first in, first out among themselves."""
        with crowd.turns.turn(Bound(1)):
            waiting = [crowd.come("a"), crowd.come("b"), crowd.come("X", urgent=True), crowd.come("c")]
            waiting.append(crowd.come("Y", urgent=True))
        for future in waiting:
            future.result()
        assert crowd.had == ["X", "Y", "a", "b", "c"]

    @pytest.mark.parametrize("urgent", [False, True])
    def test_bounded(self, crowd: Crowd, urgent: bool) -> None:
        """A waiter that reaches its bound raises StoreUnavailable and takes no turn; the next one gets it."""
        with crowd.turns.turn(Bound(10)):
            impatient = crowd.come("impatient", urgent, seconds=0.05)
            with pytest.raises(StoreUnavailable):
                impatient.result()
            patient = crowd.come("patient")
        patient.result()
        assert crowd.had == ["patient"]

    @pytest.mark.parametrize("urgent", [False, True])
    def test_a_caller_who_goes(self, crowd: Crowd, urgent: bool) -> None:
        """A waiter whose caller goes away leaves the queue at once, long before the bound."""
        call = Call()
        with crowd.turns.turn(Bound(10)):
            waiting = crowd.come("gone", urgent, call=call)
            call.gone = True
            with pytest.raises(CallerGone):
                waiting.result(5)
        assert crowd.had == []
        crowd.come("next").result(5)

    def test_a_deadline(self, crowd: Crowd) -> None:
        """The caller's deadline ends the wait."""
        with crowd.turns.turn(Bound(10)), pytest.raises(CallerGone):
            crowd.come("late", call=Call(time.monotonic() + 0.05)).result(5)

    def test_a_failure(self, crowd: Crowd) -> None:
        """A turn that ends with an exception is passed on like any other."""
        with contextlib.suppress(KeyError), crowd.turns.turn(Bound(1)):
            waiting = crowd.come("next")
            raise KeyError
        waiting.result(5)
        assert crowd.had == ["next"]

    def test_handed_over_while_leaving(self) -> None:
        """A turn that arrives just as its waiter times out is passed on, not lost."""
        turns = Turns()

        def crash(bound: Bound) -> None:
            with contextlib.suppress(StoreUnavailable), turns.turn(bound):
                pass

        with ThreadPoolExecutor(8) as threads:
            for _ in range(200):
                with turns.turn(Bound(5)):
                    leaving = [threads.submit(crash, Bound(0.002)) for _ in range(4)]
                    time.sleep(0.0019)
                for future in leaving:
                    future.result(5)
        with turns.turn(Bound(1)):
            pass


def held(store: Store) -> contextlib.AbstractContextManager[None]:
    """Hold a write transaction in another thread while the context lasts."""

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        begun, done = threading.Event(), threading.Event()

        def work(_: Transaction) -> None:
            begun.set()
            done.wait(30)

        with ThreadPoolExecutor(1) as threads:
            holding = threads.submit(store.write_serialized, work)
            begun.wait(30)
            try:
                yield
            finally:
                done.set()
                holding.result()

    return hold()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    pause = threading.Event()
    assert any(condition() or pause.wait(0.001) for _ in range(10_000))


class TestWrites:
    """Turns in a store, on each kind of database."""

    def test_what_stops_a_key_goes_first(self, domain: Domain) -> None:
        """Revoke and deactivate go before earlier changes; activate does not."""
        keys = [domain.create().key.id for _ in range(5)]
        lifecycle, turns = domain.lifecycle, domain.store._turns
        lifecycle.set_active(OPERATOR, keys[2], active=False)
        ((before,),) = domain.store.read("SELECT revision FROM log_head")
        changes: list[tuple[Callable[[], object], bool]] = [
            (lambda: domain.create(name="first"), False),
            (lambda: domain.rotate(keys[0]), False),
            (lambda: lifecycle.set_active(OPERATOR, keys[2], active=True), False),
            (lambda: lifecycle.set_active(OPERATOR, keys[3], active=False), True),
            (lambda: domain.revoke(keys[1]), True),
            (lambda: lifecycle.set_active_by_name(OPERATOR, "acme", "", "only", active=False), True),
        ]
        domain.create(name="only")
        with ThreadPoolExecutor(6) as threads:
            with held(domain.store):
                for number, (change, _) in enumerate(changes, 1):
                    threads.submit(change)
                    eventually(lambda number=number: len(turns._urgent) + len(turns._others) == number)
            threads.shutdown()
        events = domain.store.read("SELECT type FROM event WHERE revision > ? ORDER BY revision", (before + 1,))
        assert [number for (number,) in events] == [4, 5, 4, 1, 1, 6, 3]

    def test_nothing_for_who_has_gone(self, store: Store) -> None:
        """A change whose caller has gone does not begin."""
        for call in (Call(gone=True), Call(deadline=time.monotonic())):
            with calls.serving(call), pytest.raises(CallerGone):
                count_up(store)
        assert store.read("SELECT revision FROM log_head") == [(0,)]

    def test_gone_while_another_server_writes(self, store: Store, database_url: str) -> None:
        """A change whose caller goes away while it waits for the database's lock does nothing."""
        other = open_store(database_url)
        call = Call()

        def change() -> None:
            with calls.serving(call):
                count_up(store)

        with ThreadPoolExecutor(1) as threads:
            with held(other):
                waiting = threads.submit(change)
                eventually(lambda: store._turns._taken)
                call.gone = True
            with pytest.raises(CallerGone):
                waiting.result(10)
        assert store.read("SELECT revision FROM log_head") == [(0,)]
        other.close()

    def test_a_deadline_while_another_server_writes(self, store: Store, database_url: str) -> None:
        """The caller's deadline ends the wait for the database's lock, and the next change succeeds."""
        other = open_store(database_url)
        with held(other):
            began = time.monotonic()
            with calls.serving(Call(began + 0.2)), pytest.raises(CallerGone):
                count_up(store)
            assert 0.2 <= time.monotonic() - began < 1
        assert count_up(store) == 1
        other.close()

    def test_a_read_ends_at_the_deadline(self, store: Store) -> None:
        """A read that runs past its caller's deadline ends then, in the database, too."""
        slow = {
            "sqlite": "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
            "postgresql": "SELECT pg_sleep(30)",
        }[store.dialect]
        began = time.monotonic()
        with calls.serving(Call(began + 0.3)), pytest.raises(CallerGone):
            store.read(slow)
        assert 0.3 <= time.monotonic() - began < 0.9
        assert store.read("SELECT revision FROM log_head") == [(0,)]

    def test_the_caller_is_judged_inside(self, store: Store) -> None:
        """The caller is checked once per try, inside the transaction, with the lock held, before any other work."""
        seen: list[object] = []

        def judge(transaction: Transaction) -> None:
            assert store._turns._taken
            seen.append(transaction.select(LogHeadRow.select())[0].revision)

        def work(transaction: Transaction) -> None:
            seen.append("work")
            transaction.run(LogHeadRow.update(revision=7))

        with calls.serving(Call(judge=judge)):
            store.write_serialized(work)
        assert seen == [0, "work"]

    def test_a_caller_who_may_not_any_more(self, store: Store) -> None:
        """An exception of the check reaches the caller, and everything is rolled back, even the check's own writes."""

        def judge(transaction: Transaction) -> None:
            transaction.run(LogHeadRow.update(revision=7))
            raise KeyNotFound

        with calls.serving(Call(judge=judge)), pytest.raises(KeyNotFound):
            count_up(store)
        assert store.read("SELECT revision FROM log_head") == [(0,)]
        assert count_up(store) == 1

    def test_the_change_is_known_although_its_caller_has_gone(self, domain: Domain) -> None:
        """A change whose deadline passes during the commit is applied by this process and reported as made."""
        call = Call()
        issued = domain.create()

        def leave(_: Transaction) -> None:
            call.deadline = time.monotonic() + 0.001  # passes while the change is made

        call.judge = leave
        work = domain.lifecycle._ledger.write
        with calls.serving(call):
            changed = work(lambda transaction: slowly(domain, transaction, issued.key.id))
        assert domain.tail.position == changed.revision


def slowly(domain: Domain, transaction: Transaction, key_id: str) -> object:
    """Change a key, then outlast the caller's deadline; only statements check the clock."""
    before = domain.lifecycle._ledger.load(transaction.read, OPERATOR, key_id)
    changed = domain.lifecycle._switch(transaction, OPERATOR, before.id, active=False)
    time.sleep(0.002)
    return changed


class TestReads:
    """Reads do not wait for writers."""

    def test_beside_a_writer(self, store: Store, database_url: str) -> None:
        """Reads are answered during a write transaction of this or another server, on new connections, too."""
        other = open_store(database_url)
        with held(other):
            fresh = open_store(database_url)
            began = time.monotonic()
            for reader in (store, other, fresh):
                assert reader.read("SELECT revision FROM log_head") == [(0,)]
                assert [row.revision for row in reader.select(LogHeadRow.select())] == [0]
            assert time.monotonic() - began < 1
            fresh.close()
        other.close()

    def test_what_writes_waits_no_longer_than_its_bound(self, store: Store, database_url: str) -> None:
        """A change that waits for another's lock ends at its bound."""
        impatient = open_store(database_url, timeout=SECOND // 2)
        with held(store):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                count_up(impatient)
            assert 0.4 <= time.monotonic() - began < 1
        assert count_up(impatient) == 1
        impatient.close()


WRITER = """
import sys
from tests.unit.test_database import count_up
from tumbler_server.store.database import open_store
store = open_store(sys.argv[1])
print(count_up(store), flush=True)
while True:
    count_up(store)
"""


class TestProcesses:
    """Turns between processes."""

    def test_urgent_beside_a_busy_process(self, store: Store, database_url: str) -> None:
        """While another process writes without a pause, an urgent change waits for about one of its writes."""
        with subprocess.Popen([sys.executable, "-c", WRITER, database_url], stdout=subprocess.PIPE) as writer:
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline()
                took = []
                for _ in range(200):
                    began = time.monotonic()
                    store.write_serialized(lambda transaction: transaction.run(LogHeadRow.update(id=1)), urgent=True)
                    took.append(time.monotonic() - began)
            finally:
                writer.kill()
        assert sorted(took)[-3] < 0.1, sorted(took)[-10:]

    def test_no_gate(self, tmp_path: Path) -> None:
        """A gate that cannot be locked, or is held for too long, is skipped."""
        missing, one, other = Gate(tmp_path / "missing"), Gate(tmp_path), Gate(tmp_path)
        missing.wait(Bound(1))
        one.wait(Bound(1))
        assert one.held
        began = time.monotonic()
        other.wait(Bound(30))
        assert not other.held
        assert Gate.PATIENCE <= time.monotonic() - began < 2
        one.leave()
        other.wait(Bound(1))
        assert other.held
        for gate in (missing, one, other):
            gate.close()
