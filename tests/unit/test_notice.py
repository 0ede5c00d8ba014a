"""How a process notices others' commits: by its own connection on SQLite, by a wake-up and by polling elsewhere."""

import errno
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.domain import Domain
from tests.harness import FrozenClock
from tumbler_server.clock import SECOND
from tumbler_server.errors import StoreUnavailable
from tumbler_server.freshness.poller import Poller
from tumbler_server.freshness.tail import Tail
from tumbler_server.store.database import Store, open_store
from tumbler_server.store.models import LogHeadRow
from tumbler_server.verify.cache import ProofCache

PATIENCE = 10.0


@pytest.fixture
def other(store: Store, database_url: str, clock: FrozenClock) -> Iterator[Domain]:
    """Yield a domain that acts as another server on the same database."""
    theirs = open_store(database_url)
    theirs.notifies = theirs.dialect == "postgresql"
    domain = Domain(theirs, clock)
    yield domain
    domain.close()
    theirs.close()


def change(store: Store) -> None:
    """Commit something."""
    store.write_serialized(lambda transaction: transaction.run(LogHeadRow.update(id=1)))


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


class TestVersion:
    """The version that changes with each commit, only on SQLite."""

    @pytest.fixture(autouse=True)
    def sqlite(self, dialect: str) -> None:
        """Skip PostgreSQL, which has no such version."""
        if dialect != "sqlite":
            pytest.skip("on SQLite alone")

    def test_nothing(self, store: Store) -> None:
        """The version does not change without a commit."""
        first = store.version()
        store.read("SELECT 1")
        assert store.version() == first is not None

    def test_own(self, store: Store) -> None:
        """The version changes with a commit of this thread."""
        first = store.version()
        change(store)
        assert store.version() != first

    def test_other_threads(self, store: Store) -> None:
        """The version changes with a commit of another thread."""
        first = store.version()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(change, store).result()
        assert store.version() != first

    def test_other_servers(self, store: Store, other: Domain) -> None:
        """The version changes with a commit of another server."""
        first = store.version()
        other.create()
        assert store.version() != first

    def test_closed(self, store: Store) -> None:
        """A closed store has no version, and raises StoreUnavailable."""
        store.version()
        store.close()
        with pytest.raises(StoreUnavailable):
            store.version()


def test_no_version(store: Store, dialect: str) -> None:
    """PostgreSQL has no version: its commits only show in the log."""
    assert (store.version() is None) == (dialect == "postgresql")


class TestListener:
    """PostgreSQL's wake-up."""

    @pytest.fixture(autouse=True)
    def postgresql(self, dialect: str, store: Store) -> None:
        """Skip SQLite, which has no wake-up."""
        if dialect != "postgresql":
            assert store.listen() is None
            pytest.skip("on PostgreSQL alone")
        store.notifies = True

    def test_each_change_wakes(self, store: Store, other: Domain) -> None:
        """Each committed change of a key wakes the listener."""
        listener = store.listen()
        assert listener is not None
        assert not listener.wait(0.05)
        other.create()
        assert listener.wait(PATIENCE)
        assert not listener.wait(0.05)
        listener.close()

    def test_off(self, store: Store, other: Domain) -> None:
        """With notifications off, there is no listener and no wake-up."""
        listener = store.listen()
        assert listener is not None
        other.store.notifies = False
        other.create()
        assert not listener.wait(0.2)
        listener.close()
        assert other.store.listen() is None

    def test_interrupted(self, store: Store, other: Domain) -> None:
        """An interrupt ends the current wait and every later one at once; none of them counts as a wake-up."""
        listener = store.listen()
        assert listener is not None
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(listener.wait, 2 * PATIENCE)
            time.sleep(0.05)
            listener.interrupt()
            assert not waiting.result(PATIENCE)
        assert not listener.wait(2 * PATIENCE)
        other.create()
        eventually(lambda: listener.wait(2 * PATIENCE))
        listener.close()
        listener.interrupt()

    def test_no_descriptor_left(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """If no file descriptor is left, listening raises StoreUnavailable and holds no connection."""

        def refuse() -> None:
            raise OSError(errno.EMFILE, "too many open files")

        monkeypatch.setattr("socket.socketpair", refuse)
        with pytest.raises(StoreUnavailable):
            store.listen()

    def test_cut(self, store: Store) -> None:
        """A terminated connection raises StoreUnavailable."""
        listener = store.listen()
        assert listener is not None
        store.read(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE query LIKE ? AND datname = current_database()",
            ("LISTEN%",),
        )
        with pytest.raises(StoreUnavailable):
            eventually(lambda: listener.wait(PATIENCE))  # the server's termination message comes first
        listener.close()


class TestPoller:
    """The threads that keep a tail at the log's end without calls."""

    @pytest.fixture
    def follow(self, store: Store) -> Iterator[Callable[[bool], Tail]]:
        """Yield a function that starts to follow, with or without wake-ups."""
        begun: list[Poller] = []

        def begin(notifies: bool) -> Tail:
            store.notifies = notifies and store.dialect == "postgresql"
            tail = Tail(store, ProofCache(10))
            begun.append(Poller(store, tail, 2 * SECOND))
            begun[-1].start()
            return tail

        yield begin
        for poller in begun:
            poller.close()

    @pytest.mark.parametrize("notifies", [True, False], ids=["woken", "polling"])
    def test_changes_arrive(self, follow: Callable[[bool], Tail], other: Domain, notifies: bool) -> None:
        """Each change arrives without a call, and callbacks are called."""
        tail = follow(notifies)
        told: list[int] = []
        tail.on_move(lambda: told.append(tail.position))
        for number in range(1, 4):
            other.create()
            eventually(lambda number=number: tail.position == number)
        assert told[-1] == 3

    def test_stays_young(self, follow: Callable[[bool], Tail]) -> None:
        """Without changes the position is still confirmed regularly, well within the bound."""
        tail = follow(False)
        ages = []
        for _ in range(40):
            time.sleep(0.02)
            ages.append(tail.age)
        assert max(ages) < 2 * SECOND
        assert any(later < earlier for earlier, later in itertools.pairwise(ages))

    def test_ends_at_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Closing does not wait, however long the thread would have listened."""
        monkeypatch.setattr("tumbler_server.freshness.poller._LISTEN", 2 * PATIENCE)
        store.notifies = store.dialect == "postgresql"
        poller = Poller(store, Tail(store, ProofCache(10)), 2 * SECOND)
        poller.start()
        time.sleep(0.2)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(poller.close).result(PATIENCE)

    def test_the_listener_is_cut_again_and_again(
        self, follow: Callable[[bool], Tail], other: Domain, dialect: str
    ) -> None:
        """If the connection for wake-ups breaks, polling continues, and the connection is opened again."""
        if dialect != "postgresql":
            pytest.skip("on PostgreSQL alone")
        tail = follow(True)
        for number in range(1, 4):
            other.store.read(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE ? AND datname = current_database()",
                ("LISTEN%",),
            )
            other.create()
            eventually(lambda number=number: tail.position == number)
        eventually(lambda: other.store.read("SELECT 1 FROM pg_stat_activity WHERE query LIKE ?", ("LISTEN%",)) != [])
