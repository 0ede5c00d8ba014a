"""Reads the files that options name, or stdin."""

import sys
from pathlib import Path

import typer

__all__ = ["read_bytes", "read_key"]


def read_bytes(path: str, option: str) -> bytes:
    """Read a file, or stdin if the path is `-`.

    Raises:
        typer.BadParameter: It cannot be read. The message names the option.

    """
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}.", param_hint=f"'{option}'") from None


def read_key(path: str, option: str) -> str:
    """Read the text of a file, without the white space around it. Bytes that are not UTF-8 become U+FFFD."""
    return read_bytes(path, option).decode("utf-8", "replace").strip()
