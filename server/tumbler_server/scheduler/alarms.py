"""Writes the time-based events of keys to the log when they fall due. ``keys.schedule`` has the rules."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tumbler_server import metrics
from tumbler_server.clock import HOUR, NEVER, Clock
from tumbler_server.events import log
from tumbler_server.events.log import Change
from tumbler_server.keys import evidence, record, schedule
from tumbler_server.keys.record import Key
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import ApiKeyRow

BATCH = 20
"""Most keys in one transaction. Other writers wait for it, about 3 ms."""

AGAIN = HOUR
"""How soon a key that was changed by hand is looked at again. Nothing is announced of it until that is undone."""

# The second condition is redundant, but the partial index, which has only such rows, needs it to apply.
_DUE = f"SELECT id FROM api_key WHERE alarm_time <= ? AND alarm_time < {NEVER} ORDER BY alarm_time LIMIT {BATCH}"  # noqa: S608

_SET = (
    "UPDATE api_key SET rotation_due_revision = ?, rotation_overdue = ?, expiry_warnings = ?, update_time = ?, "
    "revision = ?, alarm_time = ? WHERE id = ?"
)

_TOLD = ("rotation_due_revision", "rotation_overdue", "expiry_warnings", "update_time")
"""The columns of ``_SET`` that an event's digest covers."""


class Alarms:
    """Finds keys whose alarm time has come, by the wall clock, and writes each due event to the log once."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def work(self, lease: Lease) -> bool:
        """Process one batch, and return whether there may be more."""
        key_ids = [key_id for (key_id,) in self._store.read(_DUE, (self._clock(),))]
        if not key_ids:
            return False
        changes = self._store.write_serialized(lambda transaction: self._ring(transaction, lease, key_ids))
        for change in changes:
            metrics.ALARMS.labels(change.type.name.lower()).inc()
        return len(key_ids) == BATCH

    def _ring(self, transaction: Transaction, lease: Lease, key_ids: Sequence[str]) -> list[Change]:
        lease.guard(transaction)
        now = self._clock()
        # The ORM would take as long for this query as all the rest takes.
        slots = ", ".join("?" * len(key_ids))
        found = transaction.read(f"{record.SELECT} WHERE id IN ({slots})", key_ids)
        stored = evidence.stored(transaction.read, key_ids)
        changes: list[Change] = []
        rows: list[tuple[object, ...]] = []
        first = log.head_in(transaction) + 1
        for key, _ in map(record.from_tuple, found):
            row, altered = stored[key.id]
            if altered:  # an event would confirm what was changed by hand
                transaction.run(ApiKeyRow.update(alarm_time=now + AGAIN).where(ApiKeyRow.id == key.id))
                continue
            happened, after = schedule.due(key, first + len(changes), now)
            if happened:
                changes += happened[:-1]
                changes.append(_evident(happened[-1], key, after, row))
            rows.append(_row(after, now))
        if changes:
            log.extend(transaction, changes)
        transaction.run_many(_SET, rows)
        return changes


def _evident(last: Change, before: Key, after: Key, row: dict[str, Any]) -> Change:
    """Return a key's last event, with the digest of the row as all of the key's events leave it."""
    columns = {name: getattr(after, name) for name in _TOLD}
    return replace(last, record=evidence.digest(row | columns), previous=before.revision)


def _row(key: Key, now: int) -> tuple[object, ...]:
    return (
        key.rotation_due_revision,
        key.rotation_overdue,
        key.expiry_warnings,
        key.update_time,
        key.revision,
        schedule.alarm_time(key, now),
        key.id,
    )
