"""Whether somebody writes to a SQLite file past SQLite: a backup that is copied into it, say.

The file keeps its inode, and SQLite sees nothing: it goes on with the pages that it remembers and those in its log, and
mixes them with what it reads. But in WAL mode the file itself is written only by checkpoints, and the log's index says
of each that it was made. So a file that has changed since a look, with no checkpoint since, was written by another.

The index (``-shm``) is documented, at https://sqlite.org/walformat.html. It is read by the descriptor that SQLite has
open: one of our own would, as it is closed, take the process's locks on the file with it, as POSIX has it.
"""

import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

_SIZE = 136
_SALT = struct.Struct("=8s")
_NUMBER = struct.Struct("=I")
_SALT_AT, _DONE_AT, _BEGUN_AT = 32, 96, 128

_DESCRIPTORS = Path("/proc/self/fd")


class _Checkpoints(NamedTuple):
    """How far the log has been copied into the file: its salt, and the frames of which that is done, and begun."""

    salt: bytes
    done: int
    begun: int


class Overwriting:
    """Looks at a file in WAL mode. On Linux; elsewhere it sees nothing. For one thread at a time."""

    def __init__(self, file: Path, index: Path) -> None:
        self._file = file
        self._index = index
        self._descriptor = -1
        self._seen: tuple[_Checkpoints, int, int] | None = None

    def seen(self) -> bool:
        """Say whether the file was written by another since the last look. In doubt it was not."""
        before = self._checkpoints()
        try:
            found = os.stat(self._file)
        except OSError:
            return False
        after = self._checkpoints()
        if before is None or before != after or before.done != before.begun:
            return False  # a checkpoint is under way, or was cut off by its process's end
        now = (before, found.st_size, found.st_mtime_ns)
        seen, self._seen = self._seen, now
        return seen is not None and seen[0] == before and seen != now

    def _checkpoints(self) -> _Checkpoints | None:
        try:
            wanted = os.stat(self._index)
            if self._descriptor < 0 or not os.path.samestat(wanted, os.fstat(self._descriptor)):
                self._descriptor = _descriptor_of(wanted)
            if self._descriptor < 0:
                return None
            index = os.pread(self._descriptor, _SIZE, 0)
        except OSError:
            self._descriptor = -1
            return None
        if len(index) < _SIZE:
            return None
        (salt,) = _SALT.unpack_from(index, _SALT_AT)
        (done,), (begun,) = _NUMBER.unpack_from(index, _DONE_AT), _NUMBER.unpack_from(index, _BEGUN_AT)
        return _Checkpoints(salt, done, begun)


def _descriptor_of(wanted: os.stat_result) -> int:
    """Return the number by which this process has a file open; -1 where it has not."""
    if sys.platform != "linux":
        return -1
    for name in os.listdir(_DESCRIPTORS):
        try:
            if os.path.samestat(wanted, os.fstat(int(name))):
                return int(name)
        except OSError:  # the one that lists them
            continue
    return -1
