"""How a store detects that a SQLite database's files have been replaced."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.domain import new_store
from tumbler_server.errors import Cause, StoreUnavailable
from tumbler_server.store import identity
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.store.models import LogHeadRow


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a database's path in its own folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "tumbler.db"


@pytest.fixture
def store(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Yield a store that checks only when it commits and connects, not periodically."""
    monkeypatch.setattr(identity, "LOOK", 1e9)
    store = new_store(f"sqlite:///{file}")
    yield store
    store.close()


@pytest.fixture
def other(file: Path, store: Store) -> Path:
    """Return another database with the same schema."""
    other = file.with_name("other.db")
    new_store(f"sqlite:///{other}").close()
    return other


def count_up(transaction: Transaction) -> None:
    """Increment the log's head."""
    transaction.run(LogHeadRow.update(revision=LogHeadRow.revision + 1))


def refused(call: Callable[[], object]) -> StoreUnavailable:
    """Call, and return the StoreUnavailable raised."""
    with pytest.raises(StoreUnavailable) as failed:
        call()
    assert failed.value.cause is Cause.REPLACED
    return failed.value


def test_before_a_commit(store: Store, file: Path, other: Path) -> None:
    """If the file is replaced before a commit, the change is reported as not made, and later calls are refused."""
    told: list[str] = []
    store.on_loss = told.append

    def work(transaction: Transaction) -> None:
        count_up(transaction)
        other.replace(file)

    assert refused(lambda: store.write_serialized(work)).detail["changed"] == "no"
    tried: list[Transaction] = []
    assert refused(lambda: store.write_serialized(tried.append)).detail["changed"] == "no"
    assert "changed" not in refused(lambda: store.read("SELECT 1")).detail
    refused(store.version)
    assert tried == []
    assert told == [store.lost]
    assert f"{file} was replaced while it was open; its last changes are kept in {file}-" in store.lost


def test_during_a_commit(store: Store, file: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit to a file that is no longer at its path is reported as unknown."""
    database = store._backend.database
    commit = database.commit

    def replaced() -> None:
        commit()
        other.replace(file)

    monkeypatch.setattr(database, "commit", replaced)
    assert refused(lambda: store.write_serialized(count_up)).detail["changed"] == "unknown"


@pytest.mark.parametrize("ask", [lambda store: store.read("SELECT 1"), lambda store: store.version()])
def test_another_thread_does_not_open_the_other_file(
    store: Store, file: Path, other: Path, ask: Callable[[Store], object]
) -> None:
    """A thread that connects later does not read another file than earlier threads."""
    before = file.stat().st_ino
    other.replace(file)
    with ThreadPoolExecutor(1) as threads:
        refused(lambda: threads.submit(ask, store).result())
    assert file.stat().st_ino != before
    assert not file.with_name("tumbler.db-shm").exists()


def test_now_and_then(store: Store, file: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only reads checks periodically."""
    assert store.read("SELECT revision FROM log_head") == [(0,)]
    other.replace(file)
    monkeypatch.setattr(identity, "LOOK", 0.0)
    store._backend.identity._next = 0.0
    refused(lambda: store.read("SELECT 1"))


def test_a_link(tmp_path: Path) -> None:
    """A link that points elsewhere leads to another database."""
    link = tmp_path / "current.db"
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    for file in (two, one):
        new_store(f"sqlite:///{file}").close()
    link.symlink_to(one)
    store = open_store(f"sqlite:///{link}")
    store.write_serialized(count_up)
    link.unlink()
    link.symlink_to(two)
    refused(lambda: store.write_serialized(count_up))
    store.close()


def test_a_path_that_leads_in_a_circle(store: Store, file: Path) -> None:
    """A folder that can no longer be entered counts as a removed file: whatever the reason, it is not this one."""
    file.parent.rename(file.parent.with_name("elsewhere"))
    file.parent.symlink_to(file.parent)
    failed = refused(lambda: store.write_serialized(count_up))
    assert "was removed, or made inaccessible, while it was open" in failed.said


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is resolved when the store is opened."""
    monkeypatch.chdir(tmp_path)
    store = new_store("sqlite:///a.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.write_serialized(count_up)
    store.close()


def test_new_logs_after_the_last_connection(store: Store, file: Path) -> None:
    """SQLite removes its WAL with the last connection and creates a new one, which is no replacement."""
    store.close()
    late = open_store(f"sqlite:///{file}")
    for _ in range(3):
        assert not file.with_name("tumbler.db-wal").exists()
        with ThreadPoolExecutor(1) as threads:
            threads.submit(late.write_serialized, count_up).result()
            assert file.with_name("tumbler.db-wal").exists()
    assert late.lost == ""


def test_threads_that_come_and_go(store: Store) -> None:
    """Threads whose connections open and close during writes are no replacement."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            thread = threading.Thread(target=store.read, args=("SELECT 1",))
            thread.start()
            thread.join()

    with ThreadPoolExecutor(2) as threads:
        coming = [threads.submit(come_and_go) for _ in range(2)]
        for _ in range(100):
            store.write_serialized(count_up)
        over.set()
        for each in coming:
            each.result()
    assert store.lost == ""


def test_what_was_copied_over(store: Store, file: Path, other: Path) -> None:
    """A file whose content was overwritten is another database, and its WAL is put aside."""
    store.write_serialized(count_up)
    store.write_serialized(count_up)
    shutil.copyfile(other, file)
    assert refused(lambda: store.write_serialized(count_up)).detail["changed"] == "no"
    assert "was overwritten while it was open; its last changes are kept in" in store.lost
    store.close()
    again = open_store(f"sqlite:///{file}")
    assert again.read("SELECT revision FROM log_head") == [(0,)]
    assert again.read("PRAGMA integrity_check") == [("ok",)]
    again.close()
