"""Memory that was freed goes back to the system: after a flood, a server is as small as before it."""

import ctypes
import sys
from collections.abc import Callable


def _find() -> Callable[[], None]:
    """Return what has the C library give back what it keeps for later; where it has no such call, nothing."""
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
"""Give freed memory back. Takes milliseconds, and is for threads that nobody waits for: the interpreter is let go."""
