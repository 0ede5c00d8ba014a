"""Text that is safe to show: no control character reaches a terminal, and no secret an error."""

import re
from typing import Final, TextIO

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

__all__ = ["console", "optional_time", "time", "visible", "without_secrets"]

_SECRET: Final = re.compile(r"whsec_[\w+/=]+|claim_[\w.-]{20,}|\w{40,}")
_WIDE_ENOUGH: Final = 100_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would exit with code 1, which here means "refused".
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """Return what prints to this stream, as wide as its terminal; a pipe has no width, and wants each row whole."""
    return _Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE_ENOUGH)


def visible(text: str) -> str:
    """Write out every character that a terminal would not show as itself."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def without_secrets(text: str) -> str:
    """Leave out every word that is as long as a key's secret, every claim token and every webhook secret."""
    return _SECRET.sub("***", text)


def time(value: Timestamp) -> str:
    """Write a time for people, to the second, in UTC."""
    return value.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")


def optional_time(message: Message, name: str, otherwise: str) -> str:
    """Write the time in this field of a message, or something else where it is not set."""
    return time(getattr(message, name)) if message.HasField(name) else otherwise
