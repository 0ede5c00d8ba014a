"""Shared memory in which the workers of one server post the newest committed revision."""

import mmap
import os
import tempfile
import threading

_SLOT = 8
"""Bytes of a slot: one integer, which a processor reads and writes atomically."""


class Board:
    """The newest revision that each worker of a server has committed, in shared memory.

    Each worker writes to its own slot, so none waits for another. ``Board()`` is the board of a single process.

    A revision on the board has been committed, so a worker that has not reached it must read the log. After the restore
    of an old backup, the board is ahead of the log's head until the head catches up. That costs reads, but makes no
    answer wrong.
    """

    def __init__(self, file: int | None = None, slot: int = 0) -> None:
        """Map ``file``, made by ``board_file`` in any process, or private memory. Post to its ``slot``."""
        size = _SLOT if file is None else os.fstat(file).st_size
        self._slots = memoryview(mmap.mmap(-1 if file is None else file, size)).cast("q")
        self._slot = slot
        self._alone = len(self._slots) == 1
        self._lock = threading.Lock()

    def post(self, revision: int) -> None:
        """Post a revision that this process has committed. One older than the last has no effect."""
        with self._lock:
            self._slots[self._slot] = max(self._slots[self._slot], revision)

    def newest(self) -> int:
        """Return the newest revision that any worker has committed, or 0 if there is none yet."""
        return self._slots[0] if self._alone else max(self._slots)


def board_file(slots: int) -> int:
    """Create an unlinked file for a board, and return its descriptor, which workers may inherit."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("tumbler-board")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    # Write the bytes, do not only set the size. On a full disk, touching an unallocated page would kill the process.
    os.write(file, bytes(slots * _SLOT))
    return file
