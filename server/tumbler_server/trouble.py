"""Logs what keeps failing: a line when it begins, one a minute while it lasts, and one when it ends."""

import threading
from typing import Any

from tumbler_server import clock, logs
from tumbler_server.clock import MINUTE, SECOND, Clock

AGAIN = MINUTE
"""Time between two lines while the trouble lasts."""

QUIET = 5 * SECOND
"""How long nothing must have failed before a success ends the trouble. Otherwise, alternating failures and successes
would log a line each."""

_log = logs.get_logger(__name__)


class Trouble:
    """Something that fails again and again. Safe for use by many threads."""

    def __init__(self, what: str, monotonic: Clock = clock.monotonic) -> None:
        """Name the trouble for the log: a sentence without its full stop, such as "the database cannot be used"."""
        self._what = what
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._since: int | None = None
        self._latest = 0
        self._told = 0
        self._failures = 0

    @property
    def lasts(self) -> bool:
        """Whether the trouble has begun and not ended."""
        return self._since is not None

    def met(self, **details: Any) -> None:
        """Note a failure. ``details`` say why, and what to do."""
        now = self._monotonic()
        with self._lock:
            self._latest = now
            self._failures += 1
            if self._since is None:
                self._since = self._told = now
                lasted, failures = 0, 0
            elif now - self._told < AGAIN:
                return
            else:
                self._told, lasted, failures = now, now - self._since, self._failures
        if failures:
            _log.warning(f"still: {self._what}", lasts_s=lasted // SECOND, failures=failures, **details)
        else:
            _log.warning(self._what, **details)

    def passed(self) -> None:
        """Note a success. This costs nothing while there is no trouble."""
        if self._since is None:
            return
        with self._lock:
            if self._since is None or self._monotonic() - self._latest < QUIET:
                return
            lasted, failures = self._latest - self._since, self._failures
            self._since, self._failures = None, 0
        _log.warning(f"over: {self._what}", lasted_s=round(lasted / SECOND, 1), failures=failures)
