"""Keeping the log for a span: its oldest events are removed, and what is left can still be checked."""

import threading

from tumbler_server import clock as clocks
from tumbler_server import logs
from tumbler_server.clock import SECOND, Clock
from tumbler_server.events import kept, log
from tumbler_server.events.log import Link
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import EventRow, LogHeadRow

INTERVAL = 3_600.0
"""Seconds between two runs."""

FIRST = 1.0
"""Seconds from the start to the first run."""

BATCH = 500
"""Events that one transaction removes at the most, since other writers wait for it: some 30 ms on SQLite."""

_log = logs.get_logger(__name__)


class Retention:
    """Removes events older than a span, in microseconds, from the log's beginning. Every server may have one."""

    def __init__(self, store: Store, clock: Clock, keep: int) -> None:
        self._store = store
        self._clock = clock
        self._keep = keep
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def remove(self) -> int:
        """Remove the longest beginning of the log whose events are all too old, and return how many those were.

        Of each key the last event is kept, beside the log, since it says what the key's row must be.
        The newest event is never removed, and no event from the first on that is not as it was written: that it was
        changed must not be forgotten. Events from before the installation's time was set forward may have been dated
        by a clock that was behind: they are kept for longer by as much. Raises ``StoreUnavailable``.
        """
        before = self._clock() - self._keep
        ((leapt, leapt_revision),) = self._store.read("SELECT leapt, leapt_revision FROM clock WHERE id = 1")
        newest = log.head(self._store).revision
        removed = number = 0
        last: Link | None = None
        # Checked before the transactions, since events never change, so that these are short.
        for link in log.links(self._store, up_to=newest - 1):
            if link.problem:
                _log.error("no more events are removed; run `tumbler-server audit verify`", problem=link.problem)
            later = leapt if link.revision <= leapt_revision else 0
            if link.problem or link.time + later >= before:
                break
            last, number = link, number + 1
            if number == BATCH:
                removed += self._cut(last)
                last, number = None, 0
                if self._stopping.is_set():
                    break
        return removed + (self._cut(last) if last else 0)

    def start(self) -> None:
        """Begin to remove what is too old, once an hour."""
        self._thread.start()

    def close(self) -> None:
        """End, after the transaction under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = FIRST
        while not self._stopping.wait(pause):
            pause = INTERVAL
            try:
                removed = self.remove()
            except Exception as failure:
                _log.warning("removing old events failed; retrying", error=type(failure).__name__)
                continue
            if removed:
                _log.info("removed the oldest events", events=removed)

    def _cut(self, last: Link) -> int:
        """Remove all up to an event that is the last of them, unless another server has."""
        began = clocks.monotonic()

        def work(transaction: Transaction) -> int:
            (head,) = transaction.select(LogHeadRow.select())
            rows = transaction.select(EventRow.select(EventRow.hash).where(EventRow.revision == last.revision))
            if not (head.anchor_revision < last.revision < head.revision and rows and bytes(rows[0].hash) == last.hash):
                return 0  # it is done already; or the database is another than it was: restored from a backup
            moved = {
                "anchor_revision": last.revision,
                "anchor_hash": last.hash,
                "kept": kept.leave(transaction, head.anchor_revision, last.revision, bytes(head.kept)),
            }
            transaction.run(LogHeadRow.update(moved).where(LogHeadRow.id == 1))
            return int(last.revision - head.anchor_revision)

        removed = self._store.write_serialized(work)
        self._stopping.wait((clocks.monotonic() - began) / SECOND)  # as much time for other writers as this one took
        return removed
