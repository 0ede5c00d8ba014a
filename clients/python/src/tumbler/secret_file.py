"""A new file that receives one secret. It needs nothing but the standard library."""

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
    """A file of mode 0600, whatever the umask is. It is created empty, before the secret that it is for.

    So what cannot be written is found out while nothing is lost. As a context manager it removes the file again unless
    `keep` has put a secret into it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Create the file.

        Raises:
            FileExistsError: Something is there already, a symbolic link for example. It stays as it is.
            OSError: The file cannot be created or written.

        """
        if os.fspath(path) in ("", "-"):
            raise OSError(errno.EINVAL, "must name a file, so that the secret is not shown")
        self.path: Final = Path(path)
        self.holds_secret = False
        """Whether the file holds a secret, on the disk."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            os.fchmod(descriptor, 0o600)
            # A disk that is full says so now.
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
        """Put the secret and a newline into the file, and make sure that they outlast a crash.

        Raises:
            OSError: They cannot be written. The file does not count as holding the secret.

        """
        self._write(secret.encode() + b"\n")
        self.holds_secret = True
        with suppress(OSError):  # some file systems cannot do that to a folder
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Remove the file, if it is still the one that was created, with whatever is in it."""
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
