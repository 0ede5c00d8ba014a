"""Logging that changes nothing else."""

import contextlib
import logging


def log(logger: logging.Logger, level: int, text: str, *values: object, error: BaseException | None = None) -> None:
    """Log a text, with an error's traceback if one is given. A filter or handler that raises is ignored.

    Call it last: a handler may also take its time.
    """
    with contextlib.suppress(Exception):
        logger.log(level, text, *values, exc_info=error, stacklevel=2)
