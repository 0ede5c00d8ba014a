"""The log: structured, on stderr, and free of secrets."""

import contextlib
import functools
import logging
import os
import re
import select
import stat
import sys
import threading
import traceback
from collections.abc import MutableMapping
from typing import Any, TextIO

from tumbler import keyformat

# structlog imports rich for a renderer that we do not use: an eighth of the start of each process.
_RICH = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not installed
import structlog  # noqa: E402

if _RICH is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _RICH

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("console", "json")

# Keys, without word boundaries: a key that is glued to other text is still a key. Then claim tokens and webhook
# secrets.
_SECRET = re.compile(
    rf"{keyformat.PATTERN.pattern}|claim_[\w-]+\.[\w.-]*[\w-]|whsec_[A-Za-z0-9+/=]+".replace(r"\b", "")
)

REDACTED = "[redacted]"

get_logger = structlog.get_logger
"""Returns a logger. All modules take theirs from here."""


def redact(value: Any) -> Any:
    """Return ``value`` with every text in it that looks like a secret replaced."""
    if isinstance(value, str):
        return _SECRET.sub(REDACTED, value)
    if isinstance(value, dict):
        return {redact(name): redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    # The text of a protobuf message, for example, would show its content. The type is enough.
    return f"<{type(value).__name__}>"


def configure(level: str = "info", form: str = "") -> None:
    """Log to stderr, for people (``console``) or programs (``json``).

    If ``form`` is empty, it depends on whether stderr is a terminal.
    """
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
        logger_factory=structlog.WriteLoggerFactory(_Patient(sys.stderr)),  # type: ignore[arg-type]  # it need only write
    )
    logging.getLogger().addHandler(_LIBRARIES)
    # gRPC would log each header that is not UTF-8, with a traceback. A caller without a key can send hundreds of them
    # in as many bytes, and writing them would block the loop.
    library = logging.getLogger(_GRPC)
    library.exception = functools.partial(_unless_it_is_a_header, library)  # type: ignore[method-assign]  # on purpose


_ABOUT_THE_LOST = 128
"""Bytes of the line that reports dropped lines."""


class _Patient:
    """Writes to a file what it accepts at once, and drops the rest, in whole lines.

    A log that is not read must not stop the server: if its pipe is full, every thread that logs would block. A log that
    is closed must not change what the server does.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._pipe = _pipe(file)
        self._lost = 0
        self._torn = False
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Write or drop a text. Returns its length in either case."""
        with self._lock:
            try:
                if self._takes(len(text.encode(errors="replace"))):
                    self._write(text)
                else:
                    self._lost += 1
            except (OSError, ValueError):  # for example, the disk is full; part of the line may be on it
                self._lost += 1
                self._torn = True
        return len(text)

    def flush(self) -> None:
        """Flush the file."""
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def _write(self, text: str) -> None:
        if self._lost:
            told = f'{{"event": "the log could not be written: lines were dropped", "lines": {self._lost}}}\n'
            self._file.write("\n" + told if self._torn else told)
            self._lost, self._torn = 0, False
        self._file.write(text)

    def _takes(self, size: int) -> bool:
        if self._pipe is None:
            return True
        if sys.platform == "linux" and size > select.PIPE_BUF - _ABOUT_THE_LOST:
            return False  # a writable pipe may not accept more without blocking
        poll = select.poll()
        poll.register(self._pipe, select.POLLOUT)
        return bool(poll.poll(0))


def _pipe(file: TextIO) -> int | None:
    """Return the descriptor of a file that some process must read, or None for other files."""
    try:
        mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # not a file of the system
        return None
    return file.fileno() if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None


class _Libraries(logging.Handler):
    """Logs what libraries log in our own format: one line each, and of an exception only its type and places.

    The exception's text, and the objects that asyncio describes on further lines, can hold anything.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a log that cannot be written must not change what happens
            if _is_no_news(record):
                return
            failure = record.exc_info[1] if record.exc_info else None
            details: dict[str, Any] = {"library": record.name}
            if failure is not None:
                details["error"] = type(failure).__name__
                details["places"] = places(failure)
            event, _, _ = record.getMessage().partition("\n")
            structlog.get_logger(record.name).log(record.levelno, event, **details)


def places(failure: BaseException) -> list[str]:
    """Return the places that an exception passed through: the innermost eight at most."""
    frames = traceback.extract_tb(failure.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]


_LIBRARIES = _Libraries(logging.WARNING)

_GRPC = "grpc._cython.cygrpc"


def _unless_it_is_a_header(library: logging.Logger, message: object, *arguments: object, **more: Any) -> None:
    if not str(message).startswith("Invalid encoding on"):
        library.error(message, *arguments, exc_info=True, **more)


def _is_no_news(record: logging.LogRecord) -> bool:
    """Return whether gRPC only reports that a caller left before its answer was sent, or that the server stopped."""
    if record.name != _GRPC:
        return False
    failure = record.exc_info[1] if record.exc_info else None
    if type(failure).__name__ == "ExecuteBatchError":
        return "start_batch" not in str(failure)  # otherwise gRPC refused an operation, which is a bug of ours
    return record.getMessage().endswith("due to server stop.")


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    # A rendered `exc_info` would show an exception's text, which can hold anything.
    return {name: redact(value) for name, value in event.items() if name != "exc_info"}
