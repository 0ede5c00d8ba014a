"""Time as the service stores it: whole microseconds since 1970-01-01 UTC."""

import datetime
import time
from collections.abc import Callable

Clock = Callable[[], int]

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

END = 253_402_300_799 * SECOND + 999_999
"""The end of the year 9999: the last instant that a Timestamp message can hold."""

NEVER = 2**63 - 1
"""Later than every instant: the expiry of a key that does not expire. It sorts last, and ``now >= NEVER`` is false."""


def system_clock() -> int:
    """Return the current time of the system's wall clock."""
    return time.time_ns() // 1000


def monotonic() -> int:
    """Return microseconds on a monotonic clock, which includes the machine's sleep if the system supports that."""
    return time.clock_gettime_ns(_MONOTONIC) // 1000


def rfc3339(instant: int) -> str:
    """Return an instant in the format of RFC 3339, in UTC."""
    moment = datetime.datetime.fromtimestamp(instant // SECOND, datetime.timezone.utc)
    return moment.replace(microsecond=instant % SECOND).isoformat().replace("+00:00", "Z")


_MONOTONIC = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
