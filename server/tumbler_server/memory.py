"""Returns freed memory to the system, so that a server is as small after a flood as before it."""

import ctypes
import sys
from collections.abc import Callable


def _find() -> Callable[[], None]:
    """Return the C library's function that returns freed memory, or one that does nothing if there is none."""
    if sys.platform != "linux":
        return lambda: None
    try:
        call = ctypes.CDLL(None).malloc_trim  # glibc's own; see malloc_trim(3)
    except AttributeError:  # another C library
        return lambda: None

    def trim() -> None:
        call(0)

    return trim


trim = _find()
"""Return freed memory to the system.

It takes milliseconds, so call it on a thread that no call waits for. It releases the interpreter lock.
"""
