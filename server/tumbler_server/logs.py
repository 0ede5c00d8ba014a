"""The log: structured, on stderr, and never a secret in it."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from tumbler import keyformat

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("console", "json")

# Without its word boundaries: a key that is glued to other text is one all the same.
_SECRET = re.compile(keyformat.PATTERN.pattern.replace(r"\b", ""))

REDACTED = "[redacted]"


def redact(value: Any) -> Any:
    """Return ``value`` with every text in it that has a key's form replaced."""
    if isinstance(value, str):
        return _SECRET.sub(REDACTED, value)
    if isinstance(value, dict):
        return {redact(name): redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # A message, say, whose text would show what it holds: its type is enough.
    return f"<{type(value).__name__}>"


def configure(level: str = "info", form: str = "") -> None:
    """Send the log to stderr, for people (``console``) or programs (``json``); empty: by what stderr is."""
    for_people = form == "console" or (not form and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # Rendered, `exc_info` would show an exception's text, which can hold anything.
    return {name: redact(value) for name, value in event.items() if name != "exc_info"}
