"""Whether a SQLite database's files are still those that were opened.

SQLite keeps a replaced or removed file open. It goes on reading and writing a file that no folder lists any more, and
the changes that it acknowledges are lost when the process ends. So the files are checked before and after each commit,
and a few times a second during any other use. Files are compared by device and inode, as SQLite does itself
(``SQLITE_FCNTL_HAS_MOVED``), but along the path as it leads now: a folder or a link can be swapped as well.
``overwriting`` detects writes into the same file that bypass SQLite.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

from tumbler_server.store.overwriting import Overwriting

LOOK = 0.25
"""Seconds between two checks while the database is in use."""

_Inode = tuple[int, int]


class Replaced(Exception):
    """The files at the path are not those that were opened. The message, for an operator, says which."""


class Identity:
    """The identity of the files that were opened. Safe for use by many threads."""

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
        """Check as ``look`` does, but only once every ``LOOK`` seconds. Raises ``Replaced``."""
        if self._opened is not None and (now := time.monotonic()) >= self._next:
            self._next = now + LOOK
            self.look()

    def opening(self) -> None:
        """Check the file before a connection is opened: SQLite must not apply this file's log to another file.

        Raises ``Replaced``.
        """
        if self._opened is not None:
            self._look_at_file()

    def look(self) -> None:
        """Check now. The first check records the files. Raises ``Replaced``."""
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
        """Forget the logs when no connection is open: SQLite removes them with the last one, and makes new ones."""
        with self._lock:
            self._logs.clear()
            self._overwriting.forget_log()

    def set_aside(self) -> str:
        """Move the log of a replaced file aside, and return its new path, or an empty string if there is none.

        SQLite would apply the log to whatever file is at the path when it is next opened, and so mix the two.
        """
        with self._lock:
            ours = dict(self._logs)
        mixed = self._overwritten or self._log_overwritten or _inode(self._path) != self._opened
        with contextlib.suppress(OSError):
            if mixed and self._shm in ours and _inode(self._shm) == ours[self._shm]:
                self._shm.unlink()  # it holds nothing that is not in the log
        if (log := ours.get(self._wal)) is None:
            return ""
        aside = self._aside(log)
        with contextlib.suppress(OSError):
            if mixed and _inode(self._wal) == log:
                self._wal.rename(aside)
        if self._log_overwritten:
            return ""  # it no longer holds the last changes
        return str(aside) if _inode(aside) == log else ""  # another of our processes may have moved it first

    def _aside(self, log: _Inode) -> Path:
        return self._wal.with_name(f"{self._path.name}-{log[1]}-replaced-wal")

    def _look_at_file(self) -> None:
        found = _inode(self._path)
        if self._opened is None:
            with self._lock:
                self._opened = self._opened or found
        if found is None:
            raise Replaced(f"{self._path} was removed, or made inaccessible, while it was open")
        if found != self._opened:
            raise Replaced(f"{self._path} was replaced while it was open")


def _inode(path: Path) -> _Inode | None:
    """Return the device and inode of the file at a path, or None if there is none that this process may reach.

    A path that leads nowhere, in a circle or into a folder that may not be entered is not the one that was opened.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
