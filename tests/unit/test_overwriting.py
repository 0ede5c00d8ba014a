"""What of a SQLite file's changes counts as written past SQLite."""

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tumbler_server.store.overwriting import Overwriting


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a database."""
    return tmp_path / "a.db"


@pytest.fixture
def connection(file: Path) -> Iterator[apsw.Connection]:
    """Give a connection to it, in WAL mode."""
    connection = apsw.Connection(str(file))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (x)")
    yield connection
    connection.close()


def looking(file: Path) -> Overwriting:
    """Return what looks at a database, and has looked once."""
    overwriting = Overwriting(file, file.with_name(file.name + "-shm"))
    assert not overwriting.seen()
    return overwriting


def touch(file: Path) -> None:
    """Have a file count as written, at an instant of its own."""
    found = file.stat()
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_sqlite_s_own(file: Path, connection: apsw.Connection, mode: str) -> None:
    """Commits and checkpoints of any kind, by any connection, are SQLite's own."""
    overwriting = looking(file)
    for _ in range(5):
        connection.execute("INSERT INTO t VALUES (randomblob(20000))")
        assert not overwriting.seen()
        before = file.stat().st_size
        connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        assert file.stat().st_size > before
        assert not overwriting.seen()


def test_a_vacuum(file: Path, connection: apsw.Connection) -> None:
    """A file that another connection makes smaller, by SQLite's own means, is still the same."""
    connection.execute("INSERT INTO t VALUES (randomblob(200000))")
    connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
    overwriting = looking(file)
    before = file.stat().st_size
    with contextlib.closing(apsw.Connection(str(file))) as other:
        other.execute("DELETE FROM t")
        other.execute("VACUUM")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert file.stat().st_size < before
    assert not overwriting.seen()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_another_s(file: Path, connection: apsw.Connection, checkpointed: bool) -> None:
    """What changes the file between two checkpoints is another's, whether its length stays or not."""
    connection.execute("INSERT INTO t VALUES (randomblob(20000))")
    if checkpointed:
        connection.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
    overwriting = looking(file)
    touch(file)
    assert overwriting.seen()
    with file.open("ab") as opened:
        opened.write(bytes(100))
    assert overwriting.seen()
    assert not overwriting.seen()


def test_a_look_takes_no_lock_away(file: Path, connection: apsw.Connection) -> None:
    """However often it is looked, no descriptor is opened: to close it would end the process's locks on the file."""
    open_before = os.listdir("/proc/self/fd")
    overwriting = looking(file)
    for _ in range(10):
        overwriting.seen()
    assert len(os.listdir("/proc/self/fd")) == len(open_before)
    assert connection.execute("SELECT COUNT(*) FROM t").get == 0


class Index:
    """An index of a log, as processes that checkpoint leave it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self.write(b"saltsalt", 7, 7)

    def write(self, salt: bytes, done: int, begun: int) -> None:
        self._file.seek(0)
        self._file.write(struct.pack("=32x8s56xI28xI4x", salt, done, begun))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def index(file: Path) -> Iterator[Index]:
    """Give the index of a database that there is not."""
    file.write_bytes(b"pages")
    index = Index(file.with_name(file.name + "-shm"))
    yield index
    index.close()


@pytest.mark.parametrize(
    ("salt", "done", "begun", "seen"),
    [
        (b"saltsalt", 7, 7, True),  # nothing was checkpointed
        (b"saltsalt", 9, 9, False),  # a checkpoint was made
        (b"saltsalt", 7, 9, False),  # one is under way, or its process was killed in the middle
        (b"tlastlas", 7, 7, False),  # the log has begun anew, after a checkpoint
        (b"tlastlas", 0, 0, False),
    ],
)
def test_table(file: Path, index: Index, salt: bytes, done: int, begun: int, seen: bool) -> None:
    """A file has been overwritten if it has changed and the index says that no checkpoint was made or begun."""
    overwriting = looking(file)
    index.write(salt, done, begun)
    touch(file)
    assert overwriting.seen() is seen


def test_after_a_checkpoint_that_was_cut_off(file: Path, index: Index) -> None:
    """When the checkpoint has been made good, what comes after it is seen again."""
    overwriting = looking(file)
    index.write(b"saltsalt", 7, 9)
    for _ in range(3):
        touch(file)
        assert not overwriting.seen()
    index.write(b"saltsalt", 9, 9)
    assert not overwriting.seen()
    touch(file)
    assert overwriting.seen()


def test_without_an_index(file: Path) -> None:
    """Where there is no log, or no file, nothing is said."""
    overwriting = looking(file)
    file.write_bytes(b"pages")
    assert not overwriting.seen()
