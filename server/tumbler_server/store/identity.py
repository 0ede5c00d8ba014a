"""Whether a SQLite database's files are still those that were opened.

A file that is replaced or removed stays open: SQLite goes on reading and writing what no folder lists any more, and
what it acknowledges is gone when the process ends. So each commit is looked at from both sides, and every use in
between, some times a second. The files are told apart by device and inode, by which SQLite itself tells them
(``SQLITE_FCNTL_HAS_MOVED``), but along the path as it leads now: a folder or a link can be swapped as well. What is
written into the same file past SQLite is seen by ``overwriting``.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

from tumbler_server.store.overwriting import Overwriting

LOOK = 0.25
"""Seconds between two looks while the database is used."""

_Inode = tuple[int, int]


class Replaced(Exception):
    """The files at the path are not those that were opened. The message says which, as an operator reads it."""


class Identity:
    """Knows which files were opened. Safe for use by many threads."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._wal = self._path.with_name(self._path.name + "-wal")
        self._shm = self._path.with_name(self._path.name + "-shm")
        self._lock = threading.Lock()
        self._opened: _Inode | None = None
        self._logs: dict[Path, _Inode] = {}
        self._next = 0.0
        self._overwriting = Overwriting(self._path, self._wal, self._shm)
        self._overwritten = False
        self._log_overwritten = False

    def now_and_then(self) -> None:
        """Look, if that was some time ago. Raises ``Replaced``."""
        if self._opened is not None and (now := time.monotonic()) >= self._next:
            self._next = now + LOOK
            self.look()

    def opening(self) -> None:
        """Look before a connection is opened: another file must not be joined to this one's log. As ``look``."""
        if self._opened is not None:
            self._look_at_file()

    def look(self) -> None:
        """Look now, and remember the files at the first time. Raises ``Replaced``."""
        self._look_at_file()
        for log in (self._wal, self._shm):
            found = _inode(log)
            known = self._logs.get(log)
            if known is None:
                if found is not None:
                    with self._lock:
                        self._logs.setdefault(log, found)
            elif found != known and log in self._logs:
                if _inode(self._aside(known)) == known:
                    raise Replaced(
                        f"{self._path} or its log was replaced or overwritten while it was open, as another process of "
                        "this server saw first"
                    )
                raise Replaced(f"{log} was {'replaced' if found else 'removed'} while it was open")
        with self._lock:
            self._overwritten = self._overwritten or self._overwriting.seen()
            self._log_overwritten = self._log_overwritten or self._overwriting.log_seen()
        if self._overwritten:
            raise Replaced(f"{self._path} was overwritten while it was open")
        if self._log_overwritten:
            raise Replaced(
                f"{self._wal} was overwritten or cut off while it was open, and what was changed since the last "
                "checkpoint may be lost with it"
            )

    def forget_logs(self) -> None:
        """Take note that no connection is open: SQLite removes its logs with the last one, and makes new ones."""
        with self._lock:
            self._logs.clear()
            self._overwriting.forget_log()

    def set_aside(self) -> str:
        """Keep the log of a file that was replaced from being taken for its successor's; say where it is, if it was.

        SQLite would apply it to whatever lies at the path when it is opened next, and so mix the two.
        """
        with self._lock:
            ours = dict(self._logs)
        mixed = self._overwritten or self._log_overwritten or _inode(self._path) != self._opened
        with contextlib.suppress(OSError):
            if mixed and self._shm in ours and _inode(self._shm) == ours[self._shm]:
                self._shm.unlink()  # nothing is in it that is not in the log
        if (log := ours.get(self._wal)) is None:
            return ""
        aside = self._aside(log)
        with contextlib.suppress(OSError):
            if mixed and _inode(self._wal) == log:
                self._wal.rename(aside)
        if self._log_overwritten:
            return ""  # the last changes are not in it any more
        return str(aside) if _inode(aside) == log else ""  # another process of ours may have been faster

    def _aside(self, log: _Inode) -> Path:
        return self._wal.with_name(f"{self._path.name}-{log[1]}-replaced-wal")

    def _look_at_file(self) -> None:
        found = _inode(self._path)
        if self._opened is None:
            with self._lock:
                self._opened = self._opened or found
        if found is None:
            raise Replaced(f"{self._path} was removed while it was open")
        if found != self._opened:
            raise Replaced(f"{self._path} was replaced while it was open")


def _inode(path: Path) -> _Inode | None:
    """Return which file a path leads to; None where to none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
