"""Whether somebody writes to a SQLite file or its log past SQLite: a backup that is copied into it, say.

The file keeps its inode, and SQLite sees nothing: it goes on with the pages that it remembers and those in its log, and
mixes them with what it reads. Two things give it away:

- In WAL mode the file itself is written only by checkpoints, and the log's index says of each that it was made. So a
  file that has changed since a look, with no checkpoint since, was written by another.
- The index says how many frames the log has, and the salt and the running checksum of the last one. Within one salt
  frames are only added. So a log whose frame of that number is another, or has gone, was cut off or overwritten; and an
  index that counts fewer frames than before is an older one.

The index (``-shm``) is documented, at https://sqlite.org/walformat.html. It is read by the descriptor that SQLite has
open: one of our own would, as it is closed, take the process's locks on the file with it, as POSIX has it.
"""

import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

_SIZE = 136
_HEADER = struct.Struct("=12xB1xHI4xII8s8x")
_NUMBER = struct.Struct("=I")
_DONE_AT, _BEGUN_AT = 96, 128

_LOG_HEADER, _LOG_SALT = 32, slice(16, 24)
_FRAME = struct.Struct(">8x8sII")

_DESCRIPTORS = Path("/proc/self/fd")


class _Checkpoints(NamedTuple):
    """How far the log has been copied into the file: its salt, and the frames of which that is done, and begun."""

    salt: bytes
    done: int
    begun: int


class _Frames(NamedTuple):
    """How many frames the log has, how long their pages are, and what the last one bears."""

    salt: bytes
    number: int
    page: int
    checksum: tuple[int, int]

    @property
    def last(self) -> tuple[bytes, int, int]:
        """Salt and checksum of the last frame, as they stand in the log."""
        return (self.salt, *self.checksum)


class Overwriting:
    """Looks at a file in WAL mode. On Linux; elsewhere it sees nothing. For one thread at a time."""

    def __init__(self, file: Path, log: Path, index: Path) -> None:
        self._file = file
        self._log = log
        self._index = index
        self._descriptor = -1
        self._seen: tuple[_Checkpoints, int, int] | None = None
        self._frames: _Frames | None = None

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

    def log_seen(self) -> bool:
        """Say whether the log, or its index, was written by another since the last look. In doubt it was not."""
        before = self._header()
        if before is None:
            return False
        frames = _frames(before)
        known = self._frames if self._frames and self._frames.salt == frames.salt else frames
        try:
            log = os.open(self._log, os.O_RDONLY | os.O_CLOEXEC)  # SQLite takes no locks on it, so it may be closed
            try:
                salt = os.pread(log, _LOG_HEADER, 0)[_LOG_SALT]
                stands = all(_frame(log, each) == each.last for each in {known, frames} if each.number)
            finally:
                os.close(log)
        except OSError:
            return False
        if self._header() != before:
            return False  # something was committed, or the log begun again, while we looked
        self._frames = frames
        if known.number > frames.number:
            return True
        return bool(frames.number) and not (salt == frames.salt and stands)

    def forget_log(self) -> None:
        """Take note that the log was removed by SQLite: the next one has nothing to do with it."""
        self._frames = None

    def _header(self) -> bytes | None:
        """Return what the index says of the log; None where it says nothing, or is just being written."""
        index = self._read()
        if index is None or index[:48] != index[48:96] or not _HEADER.unpack_from(index)[0]:
            return None
        return index[:48]

    def _checkpoints(self) -> _Checkpoints | None:
        index = self._read()
        if index is None:
            return None
        (done,), (begun,) = _NUMBER.unpack_from(index, _DONE_AT), _NUMBER.unpack_from(index, _BEGUN_AT)
        return _Checkpoints(_frames(index).salt, done, begun)

    def _read(self) -> bytes | None:
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
        return index if len(index) == _SIZE else None


def _frames(index: bytes) -> _Frames:
    _, page, count, *checksum, salt = _HEADER.unpack_from(index)
    return _Frames(salt, count, (page & 0xFE00) + ((page & 1) << 16), (checksum[0], checksum[1]))


def _frame(log: int, frames: _Frames) -> tuple[bytes, int, int] | None:
    """Return what the log has at the place of the last of these frames; None where it ends before that does."""
    length = _FRAME.size + frames.page
    # The whole frame at once: its length is not asked for first, since a checkpoint may cut the log off in between.
    frame = os.pread(log, length, _LOG_HEADER + (frames.number - 1) * length)
    return _FRAME.unpack_from(frame) if len(frame) == length else None


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
