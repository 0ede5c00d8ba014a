"""Logging that changes nothing else, and shows no key."""

import contextlib
import logging
import traceback

from tumbler._redaction import redact


def log(logger: logging.Logger, level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log a text, with an error's traceback if one is given. A filter or handler that raises is ignored.

    What looks like a key is removed from the values, and the traceback then becomes part of the text: a handler would
    format the error itself. Call it last: a handler may also take its time.
    """
    with contextlib.suppress(Exception):
        shown = [redact(str(value)) if isinstance(value, str | BaseException) else value for value in values]
        if error is not None:
            trace = "".join(traceback.format_exception(error))
            redacted = redact(trace)
            if redacted != trace:
                text, error = f"{text}\n%s", None
                shown.append(redacted)
        logger.log(level, text, *shown, exc_info=error, stacklevel=2)
