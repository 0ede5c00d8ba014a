"""The event log: appending in a change's own transaction, reading, and verification of the hash chain.

An event's revision comes from the single head row, which the transaction locks until it commits. So revisions have no
gaps and follow commit order on every database. An event's hash covers the previous hash, so a later change, removal or
insertion is detected.
"""

import enum
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tumbler_server import calls
from tumbler_server.events import kept as keeping
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import LogHeadRow

GENESIS = bytes(32)
"""The hash before the first event."""

_COLUMNS = (
    "revision, type, key_id, project_id, environment_id, time, actor_key_id, actor_name, detail, address, request_id, "
    "record, hash"
)
_INSERT = f"INSERT INTO event ({_COLUMNS}) VALUES ({', '.join('?' * 13)})"  # noqa: S608 - no input in it
FIRST_COLUMNS = tuple(_COLUMNS.split(", "))[:9]
_FIRST_FORM = len(FIRST_COLUMNS)
"""The number of hashed columns of an event before schema 7. In such a row the later columns are NULL and not hashed."""
_PAGE = 5_000


class EventType(enum.IntEnum):
    """The type of an event. The numbers match the proto."""

    CREATED = 1
    UPDATED = 2
    ACTIVATED = 3
    DEACTIVATED = 4
    REVOKED = 5
    ROTATED = 6
    ROTATION_DUE = 7
    ROTATION_CLAIMED = 8
    ROTATION_OVERDUE = 9
    EXPIRING = 10
    FIRST_USED = 11
    WEBHOOK_SECRET_ROTATED = 12
    RECORDED = 13
    REHASHED = 14


ANNOUNCEMENTS = frozenset(
    {
        *(EventType.ROTATION_DUE, EventType.ROTATION_OVERDUE, EventType.EXPIRING),
        *(EventType.WEBHOOK_SECRET_ROTATED, EventType.RECORDED),
    }
)
"""Events that change nothing that a verdict depends on."""


@dataclass(frozen=True)
class Actor:
    """The credential that made a change. ``key_id`` is empty if it was not a key."""

    key_id: str
    name: str


@dataclass(frozen=True)
class Change:
    """An event that is not in the log yet. ``detail`` never holds a secret.

    ``record`` is the digest of the key's stored row after the event (see ``keys.evidence``). It is empty if another
    event of the same transaction carries it, or if the event is not about a key. ``previous`` is the revision of the
    key's previous event.
    """

    type: EventType
    key_id: str
    project_id: str
    environment_id: str
    time: int
    actor: Actor
    detail: Mapping[str, str] = field(default_factory=dict)
    record: bytes = b""
    previous: int = 0


class Event(NamedTuple):
    """An event as stored in the log. ``type`` is an ``EventType``, or an unknown number from a newer server.

    A Verify reads every event since the last look, so columns are parsed only on demand.
    """

    revision: int
    type: int
    key_id: str
    project_id: str
    environment_id: str
    time: int
    actor_key_id: str
    actor_name: str
    detail_json: str
    address: str | None
    request_id: str | None
    record: bytes | None
    hash: bytes

    @property
    def actor(self) -> Actor:
        """Return who made the change."""
        return Actor(self.actor_key_id, self.actor_name)

    @property
    def detail(self) -> dict[str, str]:
        """Return the parsed detail."""
        detail: dict[str, str] = json.loads(self.detail_json)
        return detail


def sent(event: Event) -> int:
    """Return the most bytes that an event's message takes. The JSON detail is longer than the detail in the message."""
    texts = (event.key_id, event.project_id, event.environment_id, event.actor_key_id)
    return 420 + sum(map(len, texts)) + len(event.actor_name.encode()) + len(event.detail_json)


def memory(event: Event) -> int:
    """Return about how many bytes an event takes in memory."""
    return 300 + sum(map(sys.getsizeof, event[2:5])) + sum(map(sys.getsizeof, event[6:]))


def append(transaction: Transaction, change: Change) -> int:
    """Append ``change`` in the transaction that makes it, and return its revision."""
    return extend(transaction, [change])


def extend(transaction: Transaction, changes: Sequence[Change]) -> int:
    """Append one or more changes in the transaction that makes them, and return the first one's revision.

    The others follow without a gap. Each event records the current call's address and request id.
    """
    take = LogHeadRow.update(revision=LogHeadRow.revision + len(changes)).where(LogHeadRow.id == 1)
    (head,) = transaction.select(
        take.returning(LogHeadRow.revision, LogHeadRow.hash, LogHeadRow.anchor_revision, LogHeadRow.kept)
    )
    first = int(head.revision) - len(changes) + 1
    digest = bytes(head.hash)
    call = calls.current() or calls.NOBODY
    address = call.address()
    rows: list[list[object]] = []
    for revision, change in enumerate(changes, start=first):
        content: list[object] = [
            revision,
            int(change.type),
            change.key_id,
            change.project_id,
            change.environment_id,
            change.time,
            change.actor.key_id,
            change.actor.name,
            json.dumps(change.detail, sort_keys=True),
            address,
            call.request_id,
            change.record,
        ]
        digest = _chain(digest, content)
        rows.append([*content, digest])
        transaction.appended.append((revision, digest))
    transaction.run_many(_INSERT, rows)
    sum_kept = bytes(head.kept)
    if passed := [change.previous for change in changes if 0 < change.previous <= head.anchor_revision]:
        sum_kept = keeping.release(transaction, passed, sum_kept)
    transaction.run(LogHeadRow.update(hash=digest, kept=sum_kept).where(LogHeadRow.id == 1))
    transaction.notify()
    return first


class Head(NamedTuple):
    """The end of the log: the newest revision, or 0 if the log is empty, and the hash of its event."""

    revision: int
    hash: bytes


def head(store: Store) -> Head:
    """Return the end of the log."""
    ((revision, stored),) = store.read("SELECT revision, hash FROM log_head WHERE id = 1")
    return Head(int(revision), bytes(stored))


def head_in(transaction: Transaction) -> int:
    """Return the newest revision. In a write transaction it stays the newest until that transaction appends."""
    (row,) = transaction.select(LogHeadRow.select(LogHeadRow.revision).where(LogHeadRow.id == 1))
    return int(row.revision)


def hashes(store: Store, revisions: Sequence[int]) -> dict[int, bytes]:
    """Return the hashes of events by revision, empty for those no longer kept. Those not in the log are left out."""
    marks = ", ".join("?" * len(revisions))
    rows = store.read(f"SELECT revision, hash FROM event WHERE revision IN ({marks})", revisions)  # noqa: S608
    found = {int(revision): blob(stored) for revision, stored in rows}
    # Read the anchor last: events may have been removed meanwhile.
    ((anchored, anchor_hash),) = store.read("SELECT anchor_revision, anchor_hash FROM log_head WHERE id = 1")
    gone = {revision: b"" for revision in revisions if revision < anchored}
    return gone | {int(anchored): blob(anchor_hash)} | found


def anchor(store: Store) -> int:
    """Return the newest revision that retention has passed, or 0 if the whole log is kept."""
    ((revision,),) = store.read("SELECT anchor_revision FROM log_head WHERE id = 1")
    return int(revision)


def events_after(store: Store, revision: int, limit: int, project_id: str = "") -> list[Event]:
    """Return the first ``limit`` kept events after a revision, of one project or of all, in log order."""
    if project_id:
        return select(store, "revision > ? AND project_id = ?", (revision, project_id), limit)
    return select(store, "revision > ?", (revision,), limit)


def select(store: Store, condition: str, parameters: Sequence[object], limit: int) -> list[Event]:
    """Return the first ``limit`` kept events that match a condition: SQL with ``?`` for parameters."""
    rows = store.read(
        f"SELECT {_COLUMNS} FROM event WHERE {condition} AND revision > "  # noqa: S608 - no input in it
        "(SELECT anchor_revision FROM log_head WHERE id = 1) ORDER BY revision LIMIT ?",
        (*parameters, limit),
    )
    return [Event._make(row) for row in rows]


def kept(store: Store, condition: str, parameters: Sequence[object]) -> list[Event]:
    """Return all events that match a condition, including those kept beyond the log's retention. See ``select``."""
    rows = store.read(f"SELECT {_COLUMNS} FROM event WHERE {condition}", parameters)  # noqa: S608 - no input in it
    return [Event._make(row) for row in rows]


def follows(before: bytes, event: Event) -> bool:
    """Return whether ``event`` directly follows, in the chain, the event whose hash is ``before``."""
    return _chain(before, event[:-1]) == event.hash


@dataclass(frozen=True, slots=True)
class Link:
    """A kept event's link in the chain. ``problem`` describes what is wrong with it, or is empty.

    ``key_id`` and ``detail`` (JSON) are the event's.
    """

    revision: int
    time: int
    hash: bytes
    problem: str
    key_id: str
    detail: str


def blob(value: object) -> bytes:
    """Return a column's value as bytes, empty if it is of another type: SQLite stores any type in any column."""
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else b""


def links(store: Store, up_to: int) -> Iterator[Link]:
    """Check each kept event up to a revision against its predecessor, in order, and the first against the anchor.

    Events may be appended and removed during the check.
    """
    expected, chained = 1, GENESIS
    for anchored, anchor_hash, revision, *content, stored in _events(store, up_to):
        if expected <= anchored:  # the first event, or the next ones have been removed meanwhile
            expected, chained = anchored + 1, blob(anchor_hash)
        problem = ""
        if revision != expected:
            problem = f"events {expected} to {revision - 1} are missing"
        elif _chain(chained, [revision, *content]) != blob(stored):
            problem = f"event {revision} was changed, or the one before it was"
        yield Link(revision, content[4], blob(stored), problem, content[1], content[7])
        expected, chained = revision + 1, blob(stored)


def _events(store: Store, up_to: int) -> Iterator[tuple[Any, ...]]:
    columns = ", ".join(f"e.{column}" for column in _COLUMNS.split(", "))
    after = 0
    while True:
        # Read the anchor with each page, in one statement: it may move between pages.
        page = store.read(
            f"SELECT h.anchor_revision, h.anchor_hash, {columns} FROM log_head h, event e "  # noqa: S608 - no input in it
            "WHERE h.id = 1 AND e.revision > ? AND e.revision > h.anchor_revision AND e.revision <= ? "
            "ORDER BY e.revision LIMIT ?",
            (after, up_to, _PAGE),
        )
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1][2]


def _chain(before: bytes, content: Sequence[object]) -> bytes:
    *others, record = content
    content = [*others, keeping.plain(record)]
    if all(each is None for each in content[_FIRST_FORM:]):
        content = content[:_FIRST_FORM]
    text = json.dumps(content, separators=(",", ":"), default=keeping.misplaced)
    return hashlib.sha256(before + text.encode()).digest()
