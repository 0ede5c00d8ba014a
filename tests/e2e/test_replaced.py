"""A backup that replaces a database under running servers, in every likely way.

No change is acknowledged that is not in the database at the path, no process goes on with memory of the old database,
and the server exits with a line that says what happened.
"""

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.e2e.service import Service, eventually
from tests.harness import Refused

NOTICED = 1.0
"""Seconds within which the server notices the replacement."""


def moved_over(database: Path, backup: Path) -> None:
    """`mv backup database`."""
    backup.replace(database)


def removed_and_copied(database: Path, backup: Path) -> None:
    """`rm database; cp backup database`."""
    database.unlink()
    shutil.copy(backup, database)


def moved_aside(database: Path, backup: Path) -> None:
    """`mv database old; cp backup database`."""
    database.rename(database.with_name("old.db"))
    shutil.copy(backup, database)


def all_removed(database: Path, backup: Path) -> None:
    """`rm database*; cp backup database`."""
    for name in ("", "-wal", "-shm"):
        database.with_name(database.name + name).unlink(missing_ok=True)  # the server may be faster, and move the log
    shutil.copy(backup, database)


def folder_swapped(database: Path, backup: Path) -> None:
    """`mv folder old; cp -r ... folder`."""
    folder = database.parent
    new = folder.with_name("new")
    new.mkdir(mode=0o700)
    shutil.copy(backup, new / database.name)
    shutil.copy(folder / "pepper", new / "pepper")
    folder.rename(folder.with_name("before"))
    new.rename(folder)


def removed(database: Path, backup: Path) -> None:
    """`rm database`."""
    del backup
    database.unlink()


def log_removed(database: Path, backup: Path) -> None:
    """`rm database-wal`."""
    del backup
    database.with_name(database.name + "-wal").unlink()


def log_emptied(database: Path, backup: Path) -> None:
    """`: > database-wal`."""
    del backup
    os.truncate(database.with_name(database.name + "-wal"), 0)


def log_cut_off(database: Path, backup: Path) -> None:
    """`truncate -s ... database-wal`."""
    del backup
    log = database.with_name(database.name + "-wal")
    os.truncate(log, log.stat().st_size // 2)


def log_copied_over(database: Path, backup: Path) -> None:
    """`cp older-wal database-wal`."""
    log, older = database.with_name(database.name + "-wal"), backup.with_name("older-wal")
    shutil.copyfile(log, older)
    time.sleep(0.2)
    eventually(lambda: log.read_bytes() != older.read_bytes())  # some changes later
    shutil.copyfile(older, log)


def copied_over(database: Path, backup: Path) -> None:
    """`cp backup database`."""
    shutil.copyfile(backup, database)


def restored_by_sqlite(database: Path, backup: Path) -> None:
    """`sqlite3 database '.restore backup'`."""
    with contextlib.closing(sqlite3.connect(backup)) as source, contextlib.closing(sqlite3.connect(database)) as target:
        source.backup(target)


WAYS = (
    moved_over,
    removed_and_copied,
    moved_aside,
    all_removed,
    folder_swapped,
    removed,
    log_removed,
    log_emptied,
    log_cut_off,
    log_copied_over,
    restored_by_sqlite,
    copied_over,
)


def backed_up(service: Service) -> Path:
    """Make a backup, outside the data folder, while the server runs."""
    backup = service.data_dir.with_name("backup.db")
    database = service.data_dir / "tumbler.db"
    with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    return backup


class Writer:
    """A client that creates keys as fast as it can, and records when each acknowledged call started."""

    def __init__(self, service: Service) -> None:
        self.acknowledged: list[tuple[float, str]] = []
        self._client = service.connect()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Writer":
        self._thread.start()
        eventually(lambda: len(self.acknowledged) > 5)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self.acknowledged.append((began, self._client.create().api_key.id))
            except Refused:
                self._over.wait(0.01)


def ended(service: Service) -> str:
    """Check that a server exits by itself with an error line, and return that line."""
    assert service.wait() == 1
    last = service.stderr.strip().splitlines()[-1]
    assert last.startswith("tumbler-server: ")
    assert "Traceback" not in service.stderr
    return last


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_file(embedded: Service, way: Callable[[Path, Path], None], workers: int) -> None:
    """However a SQLite file is replaced or removed, no change goes to the old one, and the server exits."""
    embedded.start("--workers", str(workers), "--shutdown-grace", "2s")
    kept = embedded.create().key
    backup = backed_up(embedded)
    revoked = embedded.create()
    embedded.revoke(revoked.api_key.id)
    with Writer(embedded) as writer:
        way(embedded.data_dir / "tumbler.db", backup)
        done = time.monotonic()
        line = ended(embedded)
    late = [key_id for began, key_id in writer.acknowledged if began > done]
    if way is restored_by_sqlite:  # SQLite's own restore: later changes are in the file, and are not lost
        late = [key_id for key_id in late if not embedded.read("SELECT 1 FROM api_key WHERE id = ?", key_id)]
    assert late == []
    assert max((began for began, _ in writer.acknowledged), default=0) < done + NOTICED
    assert "while it was" in line
    assert "restore a backup only while no server runs" in line
    if way in (removed, log_removed):
        return
    embedded.start("--workers", str(workers))
    embedded.audit()
    if way in (log_emptied, log_cut_off, log_copied_over):
        assert "since the last checkpoint may be lost" in line or "another process of this server saw first" in line
        assert embedded.read("PRAGMA integrity_check") == [("ok",)]
        return
    assert embedded.verdict(kept) == "VALID"
    assert embedded.verdict(revoked.key) == "NOT_FOUND"


def test_the_old_log_is_not_taken_for_the_new_file_s(embedded: Service) -> None:
    """The write-ahead log of the old file is kept aside: SQLite would mix it into the new file."""
    embedded.start("--shutdown-grace", "2s")
    backup = backed_up(embedded)
    made = embedded.create()
    database = embedded.data_dir / "tumbler.db"
    moved_aside(database, backup)
    line = ended(embedded)
    (log,) = embedded.data_dir.glob("tumbler.db-*-replaced-wal")
    assert f"its last changes are kept in {log}" in line
    # Together with its file, it is the old database with every acknowledged change.
    log.rename(embedded.data_dir / "old.db-wal")
    with contextlib.closing(sqlite3.connect(embedded.data_dir / "old.db")) as old:
        assert old.execute("SELECT COUNT(*) FROM api_key WHERE id = ?", (made.api_key.id,)).fetchone() == (1,)
        assert old.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with contextlib.closing(sqlite3.connect(database)) as new:
        assert new.execute("SELECT COUNT(*) FROM api_key WHERE id = ?", (made.api_key.id,)).fetchone() == (0,)
        assert new.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("workers", [1, 2])
def test_postgresql(new_database: Callable[[str], str], postgresql: str, tmp_path: Path, workers: int) -> None:
    """A PostgreSQL database that is dropped and restored from a backup is detected by its log, and the server exits."""
    url = new_database("postgresql")
    name = urlsplit(url).path.removeprefix("/")
    service = Service(tmp_path / "data", url).init()
    with psycopg.connect(postgresql, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}")
        try:
            service.start("--workers", str(workers), "--shutdown-grace", "2s")
            revoked = service.create()
            service.revoke(revoked.api_key.id)
            with Writer(service) as writer:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
                admin.execute(f"CREATE DATABASE {name} TEMPLATE {name}_backup")
                done = time.monotonic()
                line = ended(service)
            assert max(began for began, _ in writer.acknowledged) < done + NOTICED
            late = [key_id for began, key_id in writer.acknowledged if began > done]
            assert [key_id for key_id in late if not service.read("SELECT 1 FROM api_key WHERE id = ?", key_id)] == []
            assert "does not follow event" in line
            service.start("--workers", str(workers))
            service.audit()
            assert service.verdict(revoked.key) == "NOT_FOUND"
        finally:
            service.close()
