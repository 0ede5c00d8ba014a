"""Which changes to a SQLite file count as made by another program."""

import contextlib
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from tumbler_server.store.overwriting import Overwriting


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a database."""
    return tmp_path / "a.db"


@pytest.fixture
def connection(file: Path) -> Iterator[apsw.Connection]:
    """Yield a connection to it, in WAL mode."""
    connection = apsw.Connection(str(file))
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (x)")
    yield connection
    connection.close()


def looking(file: Path) -> Overwriting:
    """Return an Overwriting that has looked at the database once."""
    overwriting = Overwriting(file, *(file.with_name(file.name + name) for name in ("-wal", "-shm")))
    assert not overwriting.seen()
    return overwriting


def fill(connection: apsw.Connection, rows: int = 1) -> None:
    """Write some pages, one commit per row."""
    for _ in range(rows):
        connection.execute("INSERT INTO t VALUES (randomblob(20000))")


def touch(file: Path) -> None:
    """Change a file's modification time."""
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
    """A file that another connection shrinks with VACUUM is still the same."""
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
    """A change between two checkpoints was made by another program, whether or not the length changes."""
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
    """A look opens no descriptor, because closing one would release the process's locks on the file."""
    open_before = os.listdir("/proc/self/fd")
    overwriting = looking(file)
    for _ in range(10):
        overwriting.seen()
    assert len(os.listdir("/proc/self/fd")) == len(open_before)
    assert connection.execute("SELECT COUNT(*) FROM t").get == 0


class Index:
    """A WAL index, as left by processes that checkpoint."""

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
    """Yield a WAL index for a fake database."""
    file.write_bytes(b"pages")
    index = Index(file.with_name(file.name + "-shm"))
    yield index
    index.close()


@pytest.mark.parametrize(
    ("salt", "done", "begun", "seen"),
    [
        (b"saltsalt", 7, 7, True),  # no checkpoint
        (b"saltsalt", 9, 9, False),  # a checkpoint was made
        (b"saltsalt", 7, 9, False),  # a checkpoint is in progress, or its process was killed
        (b"tlastlas", 7, 7, False),  # the WAL was restarted after a checkpoint
        (b"tlastlas", 0, 0, False),
    ],
)
def test_table(file: Path, index: Index, salt: bytes, done: int, begun: int, seen: bool) -> None:
    """A changed file counts as overwritten if the index shows that no checkpoint was made or begun."""
    overwriting = looking(file)
    index.write(salt, done, begun)
    touch(file)
    assert overwriting.seen() is seen


def test_after_a_checkpoint_that_was_cut_off(file: Path, index: Index) -> None:
    """Once an interrupted checkpoint has been completed, later changes are detected again."""
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
    """Without a WAL index or a file, nothing is reported."""
    overwriting = looking(file)
    file.write_bytes(b"pages")
    assert not overwriting.seen()


class TestLog:
    """Which changes to a WAL count as made by another program."""

    @pytest.fixture
    def log(self, file: Path, connection: apsw.Connection) -> Path:
        """Return the path of a WAL that is not empty."""
        fill(connection, 3)
        return file.with_name(file.name + "-wal")

    def overwritten(self, looking: Overwriting, log: Path, content: bytes) -> bool:
        """Overwrite a WAL in place, and return whether that is detected."""
        log.write_bytes(content)
        return looking.log_seen()

    @pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
    def test_sqlite_s_own(self, file: Path, connection: apsw.Connection, mode: str) -> None:
        """Commits, checkpoints of any kind and a restarted WAL, by any connection, are SQLite's own."""
        overwriting = looking(file)
        with contextlib.closing(apsw.Connection(str(file))) as other:
            for _ in range(5):
                for each in (connection, other):
                    fill(each)
                    assert not overwriting.log_seen()
                    each.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
                    assert not overwriting.log_seen()

    def test_a_rollback(self, file: Path, connection: apsw.Connection) -> None:
        """The next commit may overwrite what a rolled-back transaction left in the WAL."""
        overwriting = looking(file)
        connection.execute("PRAGMA cache_size = 2")  # write pages before the commit
        connection.execute("BEGIN")
        fill(connection, 20)
        assert not overwriting.log_seen()
        connection.execute("ROLLBACK")
        assert not overwriting.log_seen()
        fill(connection)
        assert not overwriting.log_seen()

    @pytest.mark.parametrize("left", [0, 20, 32, 100, -1, -25, -5000])
    def test_cut_off(self, file: Path, log: Path, left: int) -> None:
        """A truncated WAL is detected, even if only a byte of its last frame is missing."""
        overwriting = looking(file)
        assert not overwriting.log_seen()
        os.truncate(log, left if left >= 0 else log.stat().st_size + left)
        assert overwriting.log_seen()

    def test_cut_off_between_two_looks_and_written_to(self, file: Path, log: Path, connection: apsw.Connection) -> None:
        """A commit right after the truncation does not hide it: the former last frame is missing."""
        overwriting = looking(file)
        assert not overwriting.log_seen()
        os.truncate(log, 32)
        connection.execute("INSERT INTO t VALUES (1)")
        assert overwriting.log_seen()

    def test_an_older_copy(self, file: Path, log: Path, connection: apsw.Connection) -> None:
        """A copy from before the last commit, or from before the WAL was restarted, is detected."""
        before = log.read_bytes()
        fill(connection)
        overwriting = looking(file)
        assert not overwriting.log_seen()
        longer = before + bytes(log.stat().st_size - len(before))
        assert self.overwritten(overwriting, log, longer)

        connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        fill(connection)
        overwriting = looking(file)
        assert self.overwritten(overwriting, log, longer)

    def test_an_older_index(self, file: Path, connection: apsw.Connection) -> None:
        """An index with fewer frames than before is detected: the next commit would overwrite the others."""
        index = file.with_name(file.name + "-shm")
        before = index.read_bytes()
        fill(connection)
        overwriting = looking(file)
        assert not overwriting.log_seen()
        with index.open("r+b") as opened:
            opened.write(before)
        assert overwriting.log_seen()

    @pytest.mark.parametrize("moment", range(1, 13))
    def test_a_checkpoint_during_a_look(
        self, file: Path, connection: apsw.Connection, monkeypatch: pytest.MonkeyPatch, moment: int
    ) -> None:
        """A checkpoint that truncates the WAL during a look, after any of its system calls, is SQLite's own."""
        overwriting = looking(file)
        fill(connection, 3)
        assert not overwriting.log_seen()
        fill(connection)
        calls = 0

        def followed(call: Callable[..., object]) -> Callable[..., object]:
            def wrapper(*arguments: object) -> object:
                nonlocal calls
                answer = call(*arguments)
                calls += 1
                if calls == moment:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                return answer

            return wrapper

        with monkeypatch.context() as patched:
            for name in ("open", "pread", "fstat", "stat"):
                patched.setattr(os, name, followed(getattr(os, name)))
            assert not overwriting.log_seen()
        assert calls > 7
        fill(connection)
        assert not overwriting.log_seen()

    def test_no_false_alarm(self, file: Path, connection: apsw.Connection) -> None:
        """Processes that write, roll back and checkpoint concurrently cause no false alarm."""
        program = (
            "import sys, random, time, apsw\n"
            "c = apsw.Connection(sys.argv[1]); c.set_busy_timeout(20000); c.execute('PRAGMA wal_autocheckpoint = 5')\n"
            "end = time.monotonic() + 3\n"
            "while time.monotonic() < end:\n"
            "  c.execute('BEGIN IMMEDIATE'); c.execute('INSERT INTO t VALUES (randomblob(9000))')\n"
            "  c.execute(random.choice(['COMMIT', 'COMMIT', 'ROLLBACK']))\n"
            "  if random.random() < 0.2:\n"
            "    mode = random.choice(['PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'])\n"
            "    try: c.execute(f'PRAGMA wal_checkpoint({mode})')\n"
            "    except apsw.BusyError: pass\n"
        )
        writers = [subprocess.Popen([sys.executable, "-c", program, str(file)]) for _ in range(3)]
        overwriting = looking(file)
        looks = 0
        while any(each.poll() is None for each in writers):
            assert not overwriting.seen()
            assert not overwriting.log_seen()
            looks += 1
        assert [each.returncode for each in writers] == [0, 0, 0]
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        assert looks > 100
