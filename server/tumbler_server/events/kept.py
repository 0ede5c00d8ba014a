"""Events that are kept from before the log's beginning: each key's last one, which says what its row must be.

Retention removes the events before them, so that no chain holds these. A sum over them on the log's head does: it grows
when one is left behind, and shrinks when its key gets a newer one.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tumbler_server.store.database import Transaction
from tumbler_server.store.models import EventRow

NONE = bytes(32)
"""The sum over no event."""

COLUMNS = [column.column_name for column in EventRow._meta.sorted_fields]
_READ = f"SELECT {', '.join(f'e.{name}' for name in COLUMNS)} FROM event e"  # noqa: S608 - no input in it
_LAST_OF_A_KEY = "EXISTS (SELECT 1 FROM api_key k WHERE k.id = e.key_id AND k.revision = e.revision)"
_SIZE = len(NONE)
_AT_ONCE = 500


def add(total: bytes, rows: Iterable[Sequence[Any]], sign: int = 1) -> bytes:
    """Return the sum with whole rows of events added to it, or, with -1, taken away."""
    number = int.from_bytes(total, "big")
    for row in rows:
        number += sign * int.from_bytes(_leaf(row), "big")
    return (number % (1 << 8 * _SIZE)).to_bytes(_SIZE, "big")


def leave(transaction: Transaction, after: int, last: int, total: bytes) -> bytes:
    """Remove the events of a range, but for those that are some key's last, and return the sum with these."""
    rows = transaction.read(f"{_READ} WHERE e.revision > ? AND e.revision <= ? AND {_LAST_OF_A_KEY}", (after, last))
    kept = [row[0] for row in rows]
    gone = (EventRow.revision > after) & (EventRow.revision <= last)
    transaction.run(EventRow.delete().where(gone & EventRow.revision.not_in(kept) if kept else gone))
    return add(total, rows)


def release(transaction: Transaction, revisions: Sequence[int], total: bytes) -> bytes:
    """Remove kept events whose keys get newer ones, and return the sum without them."""
    for begin in range(0, len(revisions), _AT_ONCE):
        part = revisions[begin : begin + _AT_ONCE]
        rows = transaction.read(f"{_READ} WHERE e.revision IN ({', '.join('?' * len(part))})", part)
        total = add(total, rows, -1)
        transaction.run(EventRow.delete().where(EventRow.revision.in_(part)))
    return total


def page(read: Any, anchor: int, after: int, limit: int) -> list[tuple[bool, tuple[Any, ...]]]:
    """Return the next kept events after a revision, as whole rows, and of each whether it is its key's last."""
    rows = read(
        f"SELECT {_LAST_OF_A_KEY}, {_READ.removeprefix('SELECT ')} "
        "WHERE e.revision > ? AND e.revision <= ? ORDER BY e.revision LIMIT ?",
        (after, anchor, limit),
    )
    return [(bool(last), row) for last, *row in rows]


def _leaf(row: Sequence[Any]) -> bytes:
    plain = [bytes(each).hex() if isinstance(each, (bytes, memoryview)) else each for each in row]
    return hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).digest()
