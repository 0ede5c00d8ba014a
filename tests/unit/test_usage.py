"""Last use of keys: noted in memory, written in batches."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import apsw
import pytest
import structlog

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tumbler_server import calls
from tumbler_server.clock import HOUR, MINUTE, SECOND
from tumbler_server.errors import StoreUnavailable
from tumbler_server.keys import record
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.store.database import SQLITE, Store, Transaction, open_store
from tumbler_server.store.models import ApiKeyRow
from tumbler_server.verify import usage
from tumbler_server.verify.usage import Usage

PATIENCE = 30.0


@pytest.fixture
def notes(store: Store) -> Usage:
    """Return a Usage on each kind of database. It writes when a test flushes it."""
    return Usage(store)


@pytest.fixture
def key_id(domain: Domain) -> str:
    """Return the id of a key that was never used."""
    return domain.create().key.id


def last_used(store: Store, key_id: str) -> int:
    """Return a key's stored last_used_time."""
    ((found,),) = store.read("SELECT last_used_time FROM api_key WHERE id = ?", (key_id,))
    return int(found)


def crowd(store: Store, domain: Domain, number: int) -> list[str]:
    """Insert this number of keys into the table, and return their ids."""
    (row,) = store.select(ApiKeyRow.select().where(ApiKeyRow.id == domain.create().key.id))
    rows = [{**row.__data__, "id": f"{place:016}"} for place in range(number)]

    def insert(transaction: Transaction) -> None:
        for begin in range(0, len(rows), 500):
            transaction.run(ApiKeyRow.insert_many(rows[begin : begin + 500]))

    store.write_serialized(insert)
    return [str(row["id"]) for row in rows]


class Disk:
    """A store that records what is written to it. Each write takes ``takes``; the next ``failing`` writes fail."""

    dialect = SQLITE

    def __init__(self) -> None:
        self.batches: list[dict[str, int]] = []
        self.now = 0
        self.takes = 0
        self.failing = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def write_unserialized(self, work: Callable[[Any], None]) -> None:
        self.now += self.takes
        self.meanwhile()
        if self.failing:
            self.failing -= 1
            raise StoreUnavailable
        work(self)

    def execute_sql(self, _: str, parameters: tuple[str]) -> None:
        self.batches.append(json.loads(parameters[0]))

    def monotonic(self) -> int:
        return self.now


@pytest.fixture
def disk() -> Disk:
    """Return a fake store, for tests that do not depend on the database."""
    return Disk()


@pytest.fixture
def pretended(disk: Disk) -> Usage:
    """Return a Usage on the fake store. It is closed, so it never pauses."""
    pretended = Usage(cast("Store", disk), disk.monotonic)
    pretended.close()
    return pretended


class TestFlush:
    """What is written."""

    def test_written(self, store: Store, notes: Usage, key_id: str, clock: FrozenClock) -> None:
        """A flush writes the last use to the table; a note does not."""
        notes.note(key_id, clock.now)
        assert last_used(store, key_id) == 0
        notes.flush()
        assert last_used(store, key_id) == clock.now

    def test_the_latest(self, store: Store, notes: Usage, key_id: str, clock: FrozenClock) -> None:
        """Of several uses the latest is written."""
        for second in range(5):
            notes.note(key_id, clock.now + second * SECOND)
        notes.flush()
        assert last_used(store, key_id) == clock.now + 4 * SECOND

    def test_no_change(self, store: Store, notes: Usage, key_id: str, clock: FrozenClock) -> None:
        """A use is not a change: the key's other columns stay the same, and the log gets no event."""
        before = store.read(f"{record.SELECT} ORDER BY id")
        head = store.read("SELECT * FROM log_head")
        clock.advance(HOUR)
        notes.note(key_id, clock.now)
        notes.flush()
        (row,) = store.read(f"{record.SELECT} ORDER BY id")
        was, now = record.from_tuple(before[0]), record.from_tuple(row)
        assert now[0].last_used_time == clock.now
        assert (now[0].revision, now[0].etag, now[0].update_time) == (was[0].revision, was[0].etag, was[0].update_time)
        assert [one for one, other in zip(before[0], row, strict=True) if one != other] == [0]
        assert store.read("SELECT * FROM log_head") == head
        assert store.read("SELECT COUNT(*) FROM event") == [(1,)]

    def test_kept_by_changes(self, store: Store, notes: Usage, domain: Domain, key_id: str, clock: FrozenClock) -> None:
        """A change of the key keeps its last use; a successor starts unused."""
        notes.note(key_id, clock.now)
        notes.flush()
        used = clock.now
        clock.advance(HOUR)
        domain.lifecycle.update(OPERATOR, Edit(key_id, Draft("", name="after"), ("name",)))
        domain.lifecycle.set_active(OPERATOR, key_id, active=False)
        domain.lifecycle.set_active(OPERATOR, key_id, active=True)
        successor = domain.rotate(key_id).key.id
        domain.revoke(key_id)
        assert (last_used(store, key_id), last_used(store, successor)) == (used, 0)

    @pytest.mark.parametrize(
        ("later", "written"),
        [
            (-HOUR, False),
            (0, False),
            (29 * SECOND, False),
            (30 * SECOND, False),
            (30 * SECOND + 1, True),
            (MINUTE, True),
            (HOUR, True),
        ],
    )
    def test_exact_to_a_minute(
        self, store: Store, notes: Usage, key_id: str, clock: FrozenClock, later: int, written: bool
    ) -> None:
        """A stored time is never lowered, and to save writes is raised only if it is more than 30 s too old."""
        notes.note(key_id, clock.now)
        notes.flush()
        notes.note(key_id, clock.now + later)
        notes.flush()
        assert last_used(store, key_id) == clock.now + later * written

    def test_unknown(self, store: Store, notes: Usage, key_id: str, clock: FrozenClock) -> None:
        """A note for an unknown key does not affect the others."""
        notes.note("0" * 16, clock.now)
        notes.note(key_id, clock.now)
        notes.note("x" * 16, clock.now)
        notes.flush()
        assert last_used(store, key_id) == clock.now
        assert store.read("SELECT COUNT(*) FROM api_key") == [(1,)]

    def test_many(self, store: Store, notes: Usage, domain: Domain, clock: FrozenClock) -> None:
        """For any number of keys, each used key gets its own time, and an unused key none."""
        used = {key_id: clock.now + place for place, key_id in enumerate(crowd(store, domain, 1_234)) if place % 5}
        for key_id, now in used.items():
            notes.note(key_id, now)
        notes.flush()
        found = store.read("SELECT id, last_used_time FROM api_key WHERE last_used_time <> 0")
        assert dict(found) == used

    def test_nothing_to_write(self, disk: Disk, pretended: Usage) -> None:
        """A flush without notes writes nothing, and no note is written twice."""
        pretended.flush()
        pretended.note("a", 1)
        pretended.flush()
        pretended.flush()
        assert disk.batches == [{"a": 1}]

    def test_secrets(self, notes: Usage) -> None:
        """The object's repr contains no key id."""
        notes.note("0123456789abcdef", 1)
        assert "0123" not in repr(notes)


class TestSize:
    """How many keys one statement writes."""

    def _sizes(self, disk: Disk, pretended: Usage, number: int) -> list[int]:
        for place in range(number):
            pretended.note(str(place), 1)
        pretended.flush()
        return [len(batch) for batch in disk.batches]

    @pytest.mark.parametrize(
        ("takes", "sizes"),
        [
            (0, [200, 400, 800, 1_600, 3_200, 5_000, 5_000, 3_800]),
            (30_000, [200] * 20),
            (50_001, [200, 100, 50, 50, 50, 50, 50]),
        ],
        ids=["a fast disk", "as meant", "a slow disk"],
    )
    def test_follows_the_disk(self, disk: Disk, pretended: Usage, takes: int, sizes: list[int]) -> None:
        """Batches grow on a fast disk to 5,000 keys and shrink on a slow one, to keep each write within 50 ms."""
        disk.takes = takes
        assert self._sizes(disk, pretended, sum(sizes)) == sizes

    def test_small_batches_say_nothing(self, disk: Disk, pretended: Usage) -> None:
        """Fast writes of a few keys do not enlarge the next batch."""
        for _ in range(20):
            pretended.note("a", 1)
            pretended.flush()
        disk.batches.clear()
        assert self._sizes(disk, pretended, 200) == [200]

    def test_others_get_a_turn(self, disk: Disk) -> None:
        """A flush pauses after each statement for as long as it took, but not after the last."""
        waits: list[float] = []

        class Pauses(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                waits.append(timeout or 0)
                return False

        patient = Usage(cast("Store", disk), disk.monotonic)
        patient._stopping = Pauses()
        disk.takes = 40_000
        self._sizes(disk, patient, 500)
        assert waits == [0.04, 0.04]


class TestFailures:
    """What happens to notes while the database is away."""

    def test_kept(self, disk: Disk, pretended: Usage) -> None:
        """Notes that could not be written are written by the next flush, and the failure is logged."""
        pretended.note("a", 1)
        disk.failing = 1
        with structlog.testing.capture_logs() as logged:
            pretended.flush()
        assert disk.batches == []
        assert [(entry["log_level"], entry["keys"], entry["error"]) for entry in logged] == [
            ("warning", 1, "StoreUnavailable")
        ]
        pretended.flush()
        assert disk.batches == [{"a": 1}]

    def test_newer_notes_win(self, disk: Disk, pretended: Usage) -> None:
        """A note made during a failed flush is not overwritten by the older one that the flush restores."""
        pretended.note("a", 1)
        pretended.note("b", 1)
        disk.failing = 1
        disk.meanwhile = lambda: pretended.note("a", 2)
        pretended.flush()
        disk.meanwhile = lambda: None
        pretended.flush()
        assert disk.batches == [{"a": 2, "b": 1}]

    def test_what_was_written_is_not_repeated(self, disk: Disk, pretended: Usage) -> None:
        """A flush stops at the first failed statement; the next flush writes only what was not written."""
        disk.takes = 30_000
        for place in range(500):
            pretended.note(str(place), 1)

        def fail_the_second() -> None:
            disk.failing = int(len(disk.batches) == 1)

        disk.meanwhile = fail_the_second
        pretended.flush()
        assert [len(batch) for batch in disk.batches] == [200]
        disk.meanwhile = lambda: None
        disk.failing = 0
        pretended.flush()
        assert sorted(int(key_id) for batch in disk.batches for key_id in batch) == list(range(500))

    def test_bounded(self, disk: Disk, pretended: Usage, monkeypatch: pytest.MonkeyPatch) -> None:
        """While notes wait for the database, new keys beyond a maximum are dropped, and this is logged once."""
        monkeypatch.setattr(usage, "MOST_NOTES", 3)
        with structlog.testing.capture_logs() as logged:
            for key_id in "abcdea":
                pretended.note(key_id, 1)
            pretended.note("b", 2)
        assert [(entry["log_level"], entry["most"]) for entry in logged] == [("warning", 3)]
        pretended.flush()
        assert disk.batches == [{"a": 1, "b": 2, "c": 1}]
        with structlog.testing.capture_logs() as logged:
            for key_id in "abcdef":
                pretended.note(key_id, 3)
        assert len(logged) == 1
        pretended.flush()
        assert disk.batches[1:] == [{"a": 3, "b": 3, "c": 3}]

    def test_a_lost_connection(self, store: Store, notes: Usage, key_id: str, clock: FrozenClock) -> None:
        """Notes made while the column is missing are written when it is back."""
        notes.note(key_id, clock.now)
        store.write_unserialized(
            lambda db: db.execute_sql("ALTER TABLE api_key RENAME COLUMN last_used_time TO hidden")
        )
        notes.flush()
        store.write_unserialized(
            lambda db: db.execute_sql("ALTER TABLE api_key RENAME COLUMN hidden TO last_used_time")
        )
        assert last_used(store, key_id) == 0
        notes.flush()
        assert last_used(store, key_id) == clock.now


class TestThreads:
    """Threads that note and threads that write do not disturb each other."""

    def test_noted_during_a_flush(self, disk: Disk, pretended: Usage) -> None:
        """A note made during a flush, of the same key or another, is written by the next flush."""
        pretended.note("a", 1)
        disk.meanwhile = lambda: (pretended.note("a", 2), pretended.note("b", 2))[0]
        pretended.flush()
        disk.meanwhile = lambda: None
        pretended.flush()
        assert disk.batches == [{"a": 1}, {"a": 2, "b": 2}]

    def test_no_note_is_lost(self, disk: Disk, pretended: Usage) -> None:
        """With threads that note while another flushes, the last note of each key is written."""
        done = threading.Event()

        def flush() -> None:
            while not done.is_set():
                pretended.flush()

        def note(thread: int) -> None:
            for number in range(1, 20_001):
                pretended.note(f"{thread}-{number % 50}", number)

        with ThreadPoolExecutor(5) as executor:
            flushing = executor.submit(flush)
            for noting in [executor.submit(note, thread) for thread in range(4)]:
                noting.result(PATIENCE)
            done.set()
            flushing.result(PATIENCE)
        pretended.flush()
        assert len(disk.batches) > 1
        written: dict[str, int] = {}
        for batch in disk.batches:
            written.update(batch)
        expected = {number % 50: number for number in range(1, 20_001)}
        assert written == {f"{thread}-{place}": last for thread in range(4) for place, last in expected.items()}

    def test_changes_do_not_wait(self, new_database: Callable[[str], str], clock: FrozenClock) -> None:
        """On PostgreSQL a flush does not wait for the writers' lock, and changes do not wait for a flush."""
        store = new_store(new_database("postgresql"))
        domain = Domain(store, clock)
        key_id = domain.create().key.id
        notes = Usage(store)
        notes.note(key_id, clock.now)
        held, released = threading.Event(), threading.Event()

        def hold(_: Transaction) -> None:
            held.set()
            released.wait(PATIENCE)

        with ThreadPoolExecutor(1) as executor:
            holding = executor.submit(store.write_serialized, hold)
            assert held.wait(PATIENCE)
            notes.flush()
            assert last_used(store, key_id) == clock.now
            released.set()
            holding.result(PATIENCE)
        domain.close()
        store.close()

    def test_ends_while_the_database_is_held(self, new_database: Callable[[str], str], clock: FrozenClock) -> None:
        """While another process holds SQLite's write lock, closing takes less than 4 s, even during a flush."""
        url = new_database("sqlite")
        store = new_store(url)
        holder = apsw.Connection(url.removeprefix("sqlite:///"))
        holder.execute("BEGIN IMMEDIATE")
        for flushing in (False, True):
            notes = Usage(store)
            notes.note("any", clock.now)
            notes.start()
            with ThreadPoolExecutor(1) as executor:
                if flushing:
                    flush = executor.submit(calls.serving(notes._call)(notes.flush))
                    time.sleep(0.2)
                began = time.monotonic()
                notes.close()
                assert time.monotonic() - began < 4
                if flushing:
                    flush.result()
        holder.close()
        store.close()

    def test_servers_and_changes_at_the_same_time(self, store: Store, domain: Domain, database_url: str) -> None:
        """Two servers that write the same keys in opposite orders, and changes of those keys, all succeed."""
        key_ids = [domain.create().key.id for _ in range(40)]
        other = open_store(database_url)
        servers = [Usage(store), Usage(other)]
        begin = domain.clock.now

        def write(number: int) -> None:
            for turn in range(1, 11):
                for key_id in key_ids if number else reversed(key_ids):
                    servers[number].note(key_id, begin + turn * MINUTE)
                servers[number].flush()

        def change(_: int) -> None:
            for key_id in key_ids:
                domain.lifecycle.set_active(OPERATOR, key_id, active=False)

        with structlog.testing.capture_logs() as logged, ThreadPoolExecutor(3) as executor:
            for work in [executor.submit(write, 0), executor.submit(write, 1), executor.submit(change, 0)]:
                work.result(PATIENCE)
        assert logged == []
        found = store.read("SELECT DISTINCT last_used_time, active FROM api_key")
        assert [(time, bool(active)) for time, active in found] == [(begin + 10 * MINUTE, False)]
        other.close()


class TestLife:
    """When notes are written."""

    def test_again_and_again(self, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once started, it writes notes at intervals, also after a failure."""
        monkeypatch.setattr(usage, "INTERVAL", 0.01)
        running = Usage(cast("Store", disk))
        seen = threading.Semaphore(0)
        disk.failing = 2
        disk.meanwhile = seen.release
        running.note("a", 1)
        running.start()
        for _ in range(3):
            assert seen.acquire(timeout=PATIENCE)
        running.note("b", 2)
        assert seen.acquire(timeout=PATIENCE)
        running.close()
        assert {key_id: now for batch in disk.batches for key_id, now in batch.items()} == {"a": 1, "b": 2}

    @pytest.mark.parametrize("started", [True, False])
    def test_close(self, disk: Disk, started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Closing writes the remaining notes; a second close does nothing."""
        monkeypatch.setattr(usage, "INTERVAL", 1_000.0)
        closed = Usage(cast("Store", disk))
        if started:
            closed.start()
        closed.note("a", 1)
        closed.close()
        closed.close()
        assert disk.batches == [{"a": 1}]
