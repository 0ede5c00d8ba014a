"""Appending to the log inside a change's own transaction, reading it, and checking its chain.

An event's revision comes from the single head row, which its transaction holds until it commits: revisions have no gaps
and are in commit order on every database. Its hash covers the hash before it, so that whatever is changed, removed or
slipped in later shows.
"""

import enum
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tumbler_server.clock import NEVER
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import LogHeadRow

GENESIS = bytes(32)
"""What the first event's hash is chained to."""

_COLUMNS = "revision, type, key_id, project_id, environment_id, time, actor_key_id, actor_name, detail, hash"
_INSERT = f"INSERT INTO event ({_COLUMNS}) VALUES ({', '.join('?' * 10)})"  # noqa: S608 - no input in it
_PAGE = 5_000
_SHOWN = 20


class EventType(enum.IntEnum):
    """What happened to a key; the numbers are the proto's."""

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


ANNOUNCEMENTS = frozenset({EventType.ROTATION_DUE, EventType.ROTATION_OVERDUE, EventType.EXPIRING})
"""Events that say something of a key and change nothing that a verdict rests on."""


@dataclass(frozen=True)
class Actor:
    """The credential that made a change; ``key_id`` is empty where no key did."""

    key_id: str
    name: str


@dataclass(frozen=True)
class Change:
    """An event that has no place in the log yet. ``detail`` never holds a secret."""

    type: EventType
    key_id: str
    project_id: str
    environment_id: str
    time: int
    actor: Actor
    detail: Mapping[str, str] = field(default_factory=dict)


class Event(NamedTuple):
    """An event as its row stands in the log. ``type`` is an ``EventType``; a newer server may have written one more.

    It is made on the way of a Verify, for each that has happened since the last: nothing is taken apart before somebody
    asks for it.
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
    hash: bytes

    @property
    def actor(self) -> Actor:
        """Return who made the change."""
        return Actor(self.actor_key_id, self.actor_name)

    @property
    def detail(self) -> dict[str, str]:
        """Return what there is to say of it besides."""
        return json.loads(self.detail_json)  # type: ignore[no-any-return]


def sent(event: Event) -> int:
    """Return how many bytes an event's message has, at the most. Its detail, as JSON, is the longer of the two."""
    texts = (event.key_id, event.project_id, event.environment_id, event.actor_key_id)
    return 150 + sum(map(len, texts)) + len(event.actor_name.encode()) + len(event.detail_json)


def memory(event: Event) -> int:
    """Return about how many bytes an event takes in memory."""
    return 280 + sum(map(sys.getsizeof, event[2:5])) + sum(map(sys.getsizeof, event[6:]))


def append(transaction: Transaction, change: Change) -> int:
    """Append ``change`` in the transaction that makes it, and return its revision."""
    return extend(transaction, [change])


def extend(transaction: Transaction, changes: Sequence[Change]) -> int:
    """Append changes, one or more, in the transaction that makes them, and return the first one's revision.

    The others follow it without a gap.
    """
    take = LogHeadRow.update(revision=LogHeadRow.revision + len(changes)).where(LogHeadRow.id == 1)
    (head,) = transaction.select(take.returning(LogHeadRow.revision, LogHeadRow.hash))
    first = int(head.revision) - len(changes) + 1
    digest = bytes(head.hash)
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
        ]
        digest = _chain(digest, content)
        rows.append([*content, digest])
    transaction.run_many(_INSERT, rows)
    transaction.run(LogHeadRow.update(hash=digest).where(LogHeadRow.id == 1))
    transaction.notify()
    return first


class Head(NamedTuple):
    """The end of the log: the newest revision, 0 where nothing has happened yet, and the hash of its event."""

    revision: int
    hash: bytes


def head(store: Store) -> Head:
    """Return the end of the log."""
    ((revision, stored),) = store.read("SELECT revision, hash FROM log_head WHERE id = 1")
    return Head(int(revision), bytes(stored))


def head_in(transaction: Transaction) -> int:
    """Return the newest revision as it is, and stays, in a write transaction until that appends to it."""
    (row,) = transaction.select(LogHeadRow.select(LogHeadRow.revision).where(LogHeadRow.id == 1))
    return int(row.revision)


def anchor(store: Store) -> int:
    """Return the newest revision that is no longer kept; 0 while all are."""
    ((revision,),) = store.read("SELECT anchor_revision FROM log_head WHERE id = 1")
    return int(revision)


def events_after(store: Store, revision: int, limit: int, project_id: str = "") -> list[Event]:
    """Return the first ``limit`` kept events after a revision, of one project or of all, in order."""
    if project_id:
        return select(store, "revision > ? AND project_id = ?", (revision, project_id), limit)
    return select(store, "revision > ?", (revision,), limit)


def select(store: Store, condition: str, parameters: Sequence[object], limit: int) -> list[Event]:
    """Return the first ``limit`` kept events that fit a condition, written in SQL with ``?`` for parameters."""
    rows = store.read(
        f"SELECT {_COLUMNS} FROM event WHERE {condition} ORDER BY revision LIMIT ?",  # noqa: S608 - no input in it
        (*parameters, limit),
    )
    return [Event._make(row) for row in rows]


def follows(before: bytes, event: Event) -> bool:
    """Say whether ``event`` is the one that was appended to the event whose hash is ``before``."""
    return _chain(before, event[:-1]) == event.hash


@dataclass(frozen=True, slots=True)
class Link:
    """A kept event's place in the chain; ``problem`` says what is wrong there, if anything is."""

    revision: int
    time: int
    hash: bytes
    problem: str


def links(store: Store, up_to: int) -> Iterator[Link]:
    """Check every kept event up to a revision against the one before it, in order, the first against the anchor.

    Events may be appended and removed meanwhile.
    """
    expected, chained = 1, GENESIS
    for anchored, anchor_hash, revision, *content, stored in _events(store, up_to):
        if expected <= anchored:  # at the beginning; or what comes next has been removed in the meantime
            expected, chained = anchored + 1, bytes(anchor_hash)
        problem = ""
        if revision != expected:
            problem = f"events {expected} to {revision - 1} are missing"
        elif _chain(chained, [revision, *content]) != bytes(stored):
            problem = f"event {revision} is not what was written, or the one before it is not"
        yield Link(revision, content[4], bytes(stored), problem)
        expected, chained = revision + 1, bytes(stored)


@dataclass(frozen=True)
class Audit:
    """What an audit found: true if nothing is wrong. At most 20 problems of a kind are named.

    Checked were the ``events`` that are kept, the oldest of them made at ``since``; ``removed`` came before them and
    are not kept any more.
    """

    events: int
    problems: tuple[str, ...]
    removed: int = 0
    since: int = 0

    def __bool__(self) -> bool:
        return not self.problems


def audit(store: Store) -> Audit:
    """Check the whole chain from its anchor to its head, and that the keys agree with it. Changes may go on meanwhile.

    The anchor itself is taken at its word, as the head is: whoever can write to the database can move both, and
    rewrite what is between them. What had to be moved with them and was not shows.
    """
    ((newest, newest_hash, anchored, anchor_hash, strays),) = store.read(
        "SELECT revision, hash, anchor_revision, anchor_hash, "
        "(SELECT COUNT(*) FROM event e WHERE e.revision <= h.anchor_revision OR e.revision > h.revision) "
        "FROM log_head h WHERE id = 1"
    )
    problems: list[str] = [f"{strays} events stand outside the log: before its first or after its head"] * bool(strays)
    if anchored < 0 or 0 < anchored >= newest:
        problems.append(f"events up to {anchored} count as removed, of {newest}: the newest is never removed")
    if anchored == 0 and bytes(anchor_hash) != GENESIS:
        problems.append("no event counts as removed, and the chain does not start from its beginning")
    reached, chained, since = anchored, bytes(anchor_hash), 0
    for link in links(store, up_to=newest):
        since = since or link.time
        reached, chained = link.revision, link.hash
        if link.problem:
            problems.append(link.problem)
        if len(problems) >= _SHOWN:
            break
    else:
        if reached < newest and anchor(store) < newest:
            problems.append(f"events {reached + 1} to {newest} are missing")
        elif reached == newest and chained != bytes(newest_hash):
            problems.append(f"the head's hash is not that of event {newest}")
    return Audit(newest - anchored, (*problems, *_disagreements(store, up_to=newest)), anchored, since)


def _events(store: Store, up_to: int) -> Iterator[tuple[Any, ...]]:
    columns = ", ".join(f"e.{column}" for column in _COLUMNS.split(", "))
    after = 0
    while True:
        # The anchor comes with each page, by one statement: it may move between two of them.
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


def _disagreements(store: Store, up_to: int) -> Iterator[str]:
    last = "(SELECT key_id, MAX(revision) AS revision FROM event WHERE revision <= ? GROUP BY key_id)"
    # A key that was last changed before the anchor has no event any more; one that has an event must be as it says.
    for (key_id,) in store.read(
        f"SELECT k.id FROM log_head h CROSS JOIN api_key k LEFT JOIN {last} e ON e.key_id = k.id "  # noqa: S608 - no input
        "WHERE h.id = 1 AND k.revision <= ? AND (e.revision <> k.revision "
        "OR (e.revision IS NULL AND (k.revision > h.anchor_revision OR k.revision < 1))) LIMIT ?",
        (up_to, up_to, _SHOWN),
    ):
        yield f"key {key_id} was changed without an event"
    # Of a change whose event is gone, one key at the most was its subject.
    for one, other in store.read(
        "SELECT MIN(k.id), MAX(k.id) FROM log_head h CROSS JOIN api_key k WHERE h.id = 1 "
        "AND k.revision <= h.anchor_revision GROUP BY k.revision HAVING COUNT(*) > 1 LIMIT ?",
        (_SHOWN,),
    ):
        yield f"keys {one} and {other} claim the same change"
    for (key_id,) in store.read(
        f"SELECT e.key_id FROM {last} e LEFT JOIN api_key k ON k.id = e.key_id WHERE k.id IS NULL LIMIT ?",  # noqa: S608
        (up_to, _SHOWN),
    ):
        yield f"key {key_id} has events but is gone"
    for (key_id,) in store.read(
        "SELECT k.id FROM api_key k, log_head h WHERE k.revision > h.revision LIMIT ?", (_SHOWN,)
    ):
        yield f"key {key_id} was changed after the log's end"
    for (key_id,) in store.read(
        "SELECT k.id FROM api_key k JOIN event e ON e.key_id = k.id AND e.type = ? WHERE k.revoke_time = ? LIMIT ?",
        (int(EventType.REVOKED), NEVER, _SHOWN),
    ):
        yield f"key {key_id} was revoked, and its row says that it is not"


def _chain(before: bytes, content: Sequence[object]) -> bytes:
    text = json.dumps(content, separators=(",", ":"))
    return hashlib.sha256(before + text.encode()).digest()
