"""A new file for one secret. Needs only the standard library."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from tumbler import keyformat

__all__ = ["SecretFile"]

_ROOM: Final = b" " * (keyformat.MAX_LENGTH + 1)


class SecretFile:
    """A file of mode 0600, whatever the umask is. Create it, empty, before the secret exists.

    Then a file that cannot be written is found before anything is lost. As a context manager it removes the file at the
    end, unless `keep` has written a secret to it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the file.

        Raises:
            FileExistsError: The path exists already, perhaps as a symbolic link. It is left unchanged.
            OSError: The file cannot be created or written.

        """
        if os.fspath(path) in ("", "-"):
            raise OSError(errno.EINVAL, "must name a file, so that the secret is not shown")
        self.path: Final = Path(path)
        self.holds_secret = False
        """Whether the file holds a secret on disk."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            os.fchmod(descriptor, 0o600)
            # A full disk fails here.
            self._write(_ROOM)
        except OSError:
            self.discard()
            raise

    def __enter__(self) -> "SecretFile":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.holds_secret:
            self._file.close()
        else:
            self.discard()

    def keep(self, secret: str) -> None:
        """Write the secret and a newline to the file, and sync them to disk.

        Raises:
            OSError: They cannot be written. The file then does not count as holding the secret.

        """
        self._write(secret.encode() + b"\n")
        self.holds_secret = True
        with suppress(OSError):  # some file systems cannot sync a directory
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Remove the file and its content, if it is still the file that was created."""
        self.holds_secret = False
        if self._file.closed:
            return
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self.path)):
                self.path.unlink()
        self._file.close()

    def _write(self, content: bytes) -> None:
        self._file.seek(0)
        if self._file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.truncate()
        os.fsync(self._file.fileno())
