"""Detection of writes to a SQLite file or its log that bypass SQLite, such as a backup that is copied into it.

The file keeps its inode, so SQLite does not notice. It goes on with its cached pages and those in its log, and mixes
them with what it reads. Two signs reveal such a write:

- In WAL mode only checkpoints write the file itself, and the log's index records each checkpoint. So a file that has
  changed since the last check, without a checkpoint in between, was written by something else.
- The index holds the number of frames in the log, and the salt and the running checksum of the last frame. Under one
  salt, frames are only appended. So if the frame of that number differs or is missing, the log was overwritten or
  truncated. If the index counts fewer frames than before, it is an older index.

The format of the index (``-shm``) is documented at https://sqlite.org/walformat.html. It is read through the descriptor
that SQLite has open. By POSIX rules, closing a descriptor of our own would release the process's locks on the file.
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
    """How far checkpoints have copied the log into the file: its salt, and the frames that are done, and begun."""

    salt: bytes
    done: int
    begun: int


class _Frames(NamedTuple):
    """The number of frames in the log, the size of their pages, and the salt and checksum of the last frame."""

    salt: bytes
    number: int
    page: int
    checksum: tuple[int, int]

    @property
    def last(self) -> tuple[bytes, int, int]:
        """The salt and checksum of the last frame, as the log stores them."""
        return (self.salt, *self.checksum)


class Overwriting:
    """A detector for a file in WAL mode. It works only on Linux, and detects nothing elsewhere.

    For one thread at a time.
    """

    def __init__(self, file: Path, log: Path, index: Path) -> None:
        self._file = file
        self._log = log
        self._index = index
        self._descriptor = -1
        self._seen: tuple[_Checkpoints, int, int] | None = None
        self._frames: _Frames | None = None

    def seen(self) -> bool:
        """Return whether something else wrote the file since the last check. If in doubt, return False."""
        before = self._checkpoints()
        try:
            found = os.stat(self._file)
        except OSError:
            return False
        after = self._checkpoints()
        if before is None or before != after or before.done != before.begun:
            return False  # a checkpoint is in progress, or ended with its process
        now = (before, found.st_size, found.st_mtime_ns)
        seen, self._seen = self._seen, now
        return seen is not None and seen[0] == before and seen != now

    def log_seen(self) -> bool:
        """Return whether something else wrote the log or its index since the last check. If in doubt, return False."""
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
            return False  # a commit, or a restart of the log, came in between
        self._frames = frames
        if known.number > frames.number:
            return True
        return bool(frames.number) and not (salt == frames.salt and stands)

    def forget_log(self) -> None:
        """Forget the log after SQLite has removed it: the next log is unrelated."""
        self._frames = None

    def _header(self) -> bytes | None:
        """Return the header of the index, or None if it is not initialized or is being written."""
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
    """Return what the log has in the place of the last of these frames, or None if the log ends before its end."""
    length = _FRAME.size + frames.page
    # Read the whole frame at once, without checking the log's length first: a checkpoint may truncate it in between.
    frame = os.pread(log, length, _LOG_HEADER + (frames.number - 1) * length)
    return _FRAME.unpack_from(frame) if len(frame) == length else None


def _descriptor_of(wanted: os.stat_result) -> int:
    """Return a descriptor by which this process has a file open, or -1 if it has none."""
    if sys.platform != "linux":
        return -1
    for name in os.listdir(_DESCRIPTORS):
        try:
            if os.path.samestat(wanted, os.fstat(int(name))):
                return int(name)
        except OSError:  # the descriptor that listed them, now closed
            continue
    return -1
