"""A file that receives one secret."""

import errno
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final

import typer

from tumbler import keyformat

__all__ = ["SecretFile"]

_ROOM: Final = b" " * (keyformat.MAX_LENGTH + 1)


class SecretFile:
    """A file of mode 0600 that appears at its path whole, or not at all; an older one there is replaced.

    It is begun, beside that path, before the secret exists: what cannot be written is found out while nothing is lost.
    Without a secret nothing of it stays once its context ends.
    """

    def __init__(self, path: str, option: str) -> None:
        """Begin the file.

        Raises:
            typer.BadParameter: It cannot be written; the message names the option.

        """
        self._path = Path(path)
        self._holds_secret = False
        try:
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            descriptor, begun = tempfile.mkstemp(prefix=".tumbler-", dir=self._path.parent)
        except OSError as error:
            raise _unwritable(path, option, error) from None
        self._begun = Path(begun)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            # A disk that is full says so now.
            self._write(_ROOM)
        except OSError as error:
            self.__exit__(None, None, None)
            raise _unwritable(path, option, error) from None

    def __enter__(self) -> "SecretFile":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if not self._holds_secret:
            self._begun.unlink(missing_ok=True)

    @property
    def left_in(self) -> str:
        """After `keep` failed, the name of the file in the same folder that holds the secret; empty: none does."""
        return self._begun.name if self._holds_secret else ""

    def keep(self, secret: str) -> None:
        """Put the secret and a newline into the file, and the file in its place. Raises OSError where that fails."""
        self._write(secret.encode() + b"\n")
        self._holds_secret = True
        self._begun.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, content: bytes) -> None:
        self._file.seek(0)
        if self._file.write(content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.truncate()
        os.fsync(self._file.fileno())


def _unwritable(path: str, option: str, error: OSError) -> typer.BadParameter:
    return typer.BadParameter(f"{path}: {error.strerror}.", param_hint=f"'{option}'")
