"""Hands over the key that a command makes, and reports if that fails."""

import os
import sys
from pathlib import Path
from types import TracebackType

from tumbler.secret_file import SecretFile
from tumbler_server.errors import SetupError, StoreUnavailable, explain, may_have_changed


class Handover:
    """The destination of a key: the file of ``--output``, or stdout.

    The file has mode 0600, and is created before anything is changed. It holds the key before the database does, so
    that no key is lost. It is removed if no key was made.
    """

    def __init__(self, output: Path | None) -> None:
        """Create the output file, if there is to be one.

        Raises ``SetupError`` if it exists or cannot be written, or if there is none and stdout is closed.
        """
        self._announced = False
        self._file: SecretFile | None = None
        if output is None:
            # ``sys.stdout`` has been replaced by now, with a file that discards everything.
            if sys.__stdout__ is None:
                raise SetupError("stdout is closed, so the key would be lost. Nothing was changed; use --output FILE")
            return
        try:
            self._file = SecretFile(output)
        except FileExistsError:
            raise SetupError(
                f"{output} already exists and is not overwritten. Nothing was changed; name a new file"
            ) from None
        except OSError as failure:
            raise SetupError(f"{output} cannot be written: {failure.strerror}. Nothing was changed") from None

    def __enter__(self) -> "Handover":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        unconfirmed = self._announced and exc_value is not None and may_have_changed(exc_value)
        if self._file is not None:
            if exc_value is not None and not unconfirmed:
                self._file.discard()
            self._file.__exit__(exc_type, exc_value, traceback)
        if unconfirmed:
            why = explain(exc_value) if isinstance(exc_value, StoreUnavailable) else "interrupted"
            kept = "It was not shown" if self._file is None else f"If it was, it is in {self._file.path}"
            raise SetupError(
                f"{why}. The key may or may not have been made. {kept}. "
                "`tumbler-server doctor` says whether an operator's key works; "
                "`tumbler-server operator-key --output FILE` makes another"
            ) from exc_value

    def keep(self, text: str) -> None:
        """Take a key that is about to be made, and write it to the file, if there is one. Raises ``SetupError``."""
        if self._file is not None:
            try:
                self._file.keep(text)
            except OSError as failure:
                raise SetupError(f"{self._file.path} cannot be written: {failure.strerror}. No key was made") from None
        self._announced = True

    def show(self, text: str, made: str) -> None:
        """Print a key that was made, and nothing else, to stdout, unless it is in a file.

        Raises ``SetupError``, which begins with ``made``, if it cannot be printed.
        """
        self._announced = False
        if self._file is not None:
            return
        try:
            print(text, flush=True)
        except OSError as failure:
            # Otherwise Python would try to write the buffered text again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SetupError(
                f"{made}, but its key could not be shown ({failure.strerror}) and is lost: "
                "`tumbler-server operator-key --output FILE` makes another, --revoke-others revokes the lost one"
            ) from None
