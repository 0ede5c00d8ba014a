"""Where the workers of one server tell each other how far the log has come."""

import mmap
import os
import tempfile
import threading

_SLOT = 8
"""Bytes of a slot: one whole number that a processor reads and writes at once."""


class Board:
    """The newest revision that each worker of a server has committed, in memory that they share.

    Each worker writes to a slot of its own, so that none waits for another. ``Board()`` is that of a process alone.

    It is a hint: a revision on it has been committed, so whoever has not come so far must read the log. After an old
    backup was restored the board is ahead of the log's head until the head has caught up; that costs reads, and makes
    no answer wrong.
    """

    def __init__(self, file: int | None = None, slot: int = 0) -> None:
        """Take the ``slot`` of a ``board_file`` that another process made."""
        size = _SLOT if file is None else os.fstat(file).st_size
        self._slots = memoryview(mmap.mmap(-1 if file is None else file, size)).cast("q")
        self._slot = slot
        self._alone = len(self._slots) == 1
        self._lock = threading.Lock()

    def post(self, revision: int) -> None:
        """Say that this process has committed a revision; an older one than before changes nothing."""
        with self._lock:
            self._slots[self._slot] = max(self._slots[self._slot], revision)

    def newest(self) -> int:
        """Return the newest revision that any of the workers has committed; 0: none yet."""
        return self._slots[0] if self._alone else max(self._slots)


def board_file(slots: int) -> int:
    """Make a file for a board that no folder lists, and return its descriptor, which workers may inherit."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("tumbler-board")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    # Written, not only sized: a page that a full disk has no room for would end whoever touches it.
    os.write(file, bytes(slots * _SLOT))
    return file
