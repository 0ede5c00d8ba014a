"""Text that is safe to show: no control characters on a terminal, no secrets in errors."""

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
        # rich would exit with code 1, which means "refused" here.
        raise BrokenPipeError


def console(stream: TextIO) -> Console:
    """Return a console for this stream, as wide as its terminal. A pipe has no width and gets each row on one line."""
    return _Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE_ENOUGH)


def visible(text: str) -> str:
    """Return the text with escapes for all characters that a terminal would not print as themselves."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def without_secrets(text: str) -> str:
    """Replace every word as long as a key's secret, every claim token and every webhook secret."""
    return _SECRET.sub("***", text)


def time(value: Timestamp) -> str:
    """Format a time for people, to the second, in UTC."""
    return value.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")


def optional_time(message: Message, name: str, otherwise: str) -> str:
    """Format the time in this field of a message, or return `otherwise` if it is not set."""
    return time(getattr(message, name)) if message.HasField(name) else otherwise
