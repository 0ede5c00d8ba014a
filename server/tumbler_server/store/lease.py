"""The lease that decides which process of all servers acts on schedules.

The holder increments a number in the database, the beat, every few seconds. A process that has seen the beat unchanged
for the whole span, by its own monotonic clock, takes the lease over. A holder that has not incremented it for two
thirds of the span stops acting. So wall clocks and clock skew between servers do not matter. A process that was
suspended and resumes finds in its next transaction (``guard``) that another process holds the lease.
"""

from tumbler_server import clock, logs
from tumbler_server.clock import Clock
from tumbler_server.defaults import SCHEDULER_LEASE
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import LeaseRow

_log = logs.get_logger(__name__)


class LeaseLost(Exception):
    """Another process holds the lease now."""


class Lease:
    """A process's view of the lease. For one thread, except ``held``."""

    def __init__(
        self, store: Store, holder: str, span: int = SCHEDULER_LEASE, monotonic: Clock = clock.monotonic
    ) -> None:
        """Take part as ``holder``, a name that no other process has, unless that process is known to have ended."""
        self._store = store
        self._holder = holder
        self._span = span
        self._monotonic = monotonic
        self._seen: tuple[int, int] | None = None  # term and beat of another holder
        self._since = monotonic()  # when that pair was first seen
        self._term = 0
        self._beat = 0
        self._beaten = 0

    @property
    def term(self) -> int:
        """The term of the lease, which increases whenever a process takes it; 0 while it is not ours."""
        return self._term

    @property
    def held(self) -> bool:
        """Whether this process may act."""
        return self._term > 0 and self._monotonic() - self._beaten < self._span * 2 // 3

    def keep(self) -> bool:
        """Renew the lease if it is ours and due, or take it if it is free. Return whether it is held.

        Call this several times per span. Raises ``StoreUnavailable``.
        """
        began = self._monotonic()
        if self._term:
            if began - self._beaten >= self._span // 5:
                self._raise(began)
        else:
            self._try(began)
        return self.held

    def guard(self, transaction: Transaction) -> None:
        """Raise ``LeaseLost`` unless the lease is ours and stays so until the transaction ends."""
        (row,) = transaction.select(LeaseRow.select())
        if not self._term or (row.holder, row.term) != (self._holder, self._term):
            self._lose()
            raise LeaseLost

    def release(self) -> None:
        """Release the lease if it is ours. Raises ``StoreUnavailable``."""
        if not self._term:
            return
        ours = (LeaseRow.holder == self._holder) & (LeaseRow.term == self._term)
        self._store.write_serialized(lambda transaction: transaction.run(LeaseRow.update(holder="").where(ours)))
        self._term = 0

    def _raise(self, began: int) -> None:
        beat = self._beat + 1
        ours = (LeaseRow.holder == self._holder) & (LeaseRow.term == self._term)
        raised = self._store.write_serialized(
            lambda transaction: transaction.change(LeaseRow.update(beat=beat).where(ours))
        )
        if not raised:
            self._lose()
            return
        # Count from before the write. The others count from when they see the new beat, which is later.
        self._beat, self._beaten = beat, began

    def _try(self, began: int) -> None:
        ((holder, term, beat),) = self._store.read("SELECT holder, term, beat FROM lease WHERE id = 1")
        if self._seen != (term, beat):
            self._seen, self._since = (term, beat), began
        if holder not in ("", self._holder) and began - self._since < self._span:
            return
        same = (LeaseRow.term == term) & (LeaseRow.beat == beat) & (LeaseRow.holder == holder)
        take = LeaseRow.update(holder=self._holder, term=term + 1, beat=0).where(same)
        if self._store.write_serialized(lambda transaction: transaction.change(take)):
            self._term, self._beat, self._beaten = term + 1, 0, began
            _log.info("this process now acts on schedules", term=self._term, after=holder)

    def _lose(self) -> None:
        if self._term:
            _log.warning("another process now acts on schedules", term=self._term)
        self._term, self._seen = 0, None
