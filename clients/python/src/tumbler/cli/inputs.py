"""Files and stdin, as the options that name them read them."""

import sys
from pathlib import Path

import typer

__all__ = ["read_bytes", "read_key"]


def read_bytes(path: str, option: str) -> bytes:
    """Read a file; stdin where the path is `-`.

    Raises:
        typer.BadParameter: It cannot be read; the message names the option.

    """
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}.", param_hint=f"'{option}'") from None


def read_key(path: str, option: str) -> str:
    """Read the one text in a file, without the white space around it. Bytes that are no UTF-8 become U+FFFD."""
    return read_bytes(path, option).decode("utf-8", "replace").strip()
