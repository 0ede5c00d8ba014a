"""Events that are kept from before the start of the log: each key's last event, and evidence of alterations.

A key's last event says what its row must be. An event that records a change by hand (``ALTERED``) is kept forever.
Retention removes the events between them, so the hash chain does not cover these. A sum on the log's head does: it
grows when retention keeps an event, and shrinks when a key gets a newer one.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from tumbler_server.store.database import Transaction
from tumbler_server.store.models import EventRow

ALTERED = "altered"
"""The field of an event's detail that names the columns that were changed by hand before the event."""

NONE = bytes(32)
"""The sum over no event."""

COLUMNS = [column.column_name for column in EventRow._meta.sorted_fields]
_READ = f"SELECT {', '.join(f'e.{name}' for name in COLUMNS)} FROM event e"  # noqa: S608 - no input in it
_LAST_OF_A_KEY = "EXISTS (SELECT 1 FROM api_key k WHERE k.id = e.key_id AND k.revision = e.revision)"
_EVIDENCE = f'"{ALTERED}": "'
"""How the detail of such an event contains the field; no value can contain it: JSON escapes the quotes."""

_KEPT = f"({_LAST_OF_A_KEY} OR e.detail LIKE ?)"
_LIKE_EVIDENCE = f"%{_EVIDENCE}%"
_DETAIL = COLUMNS.index("detail")
_BLOBS = frozenset({"record", "hash"})
_SIZE = len(NONE)
_AT_ONCE = 500


def add(total: bytes, rows: Iterable[Sequence[Any]], sign: int = 1) -> bytes:
    """Return the sum with whole rows of events added to it, or, with -1, taken away."""
    number = int.from_bytes(total, "big")
    for row in rows:
        number += sign * int.from_bytes(_leaf(row), "big")
    return (number % (1 << 8 * _SIZE)).to_bytes(_SIZE, "big")


def leave(transaction: Transaction, after: int, last: int, total: bytes) -> bytes:
    """Remove the events of a range except those to keep, and return the sum including these."""
    condition = f"WHERE e.revision > ? AND e.revision <= ? AND {_KEPT}"
    rows = transaction.read(f"{_READ} {condition}", (after, last, _LIKE_EVIDENCE))
    kept = [row[0] for row in rows]
    gone = (EventRow.revision > after) & (EventRow.revision <= last)
    transaction.run(EventRow.delete().where(gone & EventRow.revision.not_in(kept) if kept else gone))
    return add(total, rows)


def release(transaction: Transaction, revisions: Sequence[int], total: bytes) -> bytes:
    """Remove kept events whose keys get newer ones, except evidence, and return the sum without the removed ones."""
    for begin in range(0, len(revisions), _AT_ONCE):
        part = revisions[begin : begin + _AT_ONCE]
        found = transaction.read(f"{_READ} WHERE e.revision IN ({', '.join('?' * len(part))})", part)
        rows = [row for row in found if _EVIDENCE not in row[_DETAIL]]
        total = add(total, rows, -1)
        transaction.run(EventRow.delete().where(EventRow.revision.in_([row[0] for row in rows])))
    return total


def page(read: Any, anchor: int, after: int, limit: int) -> list[tuple[bool, tuple[Any, ...]]]:
    """Return the next events between a revision and the anchor, as whole rows, each with whether it is to be kept."""
    rows = read(
        f"SELECT {_KEPT}, {_READ.removeprefix('SELECT ')} "
        "WHERE e.revision > ? AND e.revision <= ? ORDER BY e.revision LIMIT ?",
        (_LIKE_EVIDENCE, after, anchor, limit),
    )
    return [(bool(keeps), tuple(row)) for keeps, *row in rows]


def _leaf(row: Sequence[Any]) -> bytes:
    values = [plain(value) if name in _BLOBS else value for name, value in zip(COLUMNS, row, strict=True)]
    return hashlib.sha256(json.dumps(values, separators=(",", ":"), default=misplaced).encode()).digest()


def plain(blob: Any) -> object:
    """Return the value of a column of bytes as the hashes take it. SQLite takes a text there too, which differs."""
    if isinstance(blob, (bytes, bytearray, memoryview)):
        return bytes(blob).hex()
    return blob if blob is None else {"type": type(blob).__name__, "value": str(blob)}


def misplaced(blob: Any) -> object:
    """Return bytes in a column of texts or numbers as the hashes take them: not as the same text."""
    return {"type": "bytes", "value": bytes(blob).hex()}
