"""Appending to the log inside a change's own transaction, reading it, and checking its chain.

An event's revision comes from the single head row, which its transaction holds until it commits: revisions have no gaps
and are in commit order on every database. Its hash covers the hash before it, so that whatever is changed, removed or
slipped in later shows.
"""

import enum
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tumbler_server.clock import NEVER
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import EventRow, LogHeadRow

GENESIS = bytes(32)
"""What the first event's hash is chained to."""

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


def append(transaction: Transaction, change: Change) -> int:
    """Append ``change`` in the transaction that makes it, and return its revision."""
    take = LogHeadRow.update(revision=LogHeadRow.revision + 1).where(LogHeadRow.id == 1)
    (head,) = transaction.select(take.returning(LogHeadRow.revision, LogHeadRow.hash))
    detail = json.dumps(change.detail, sort_keys=True)
    row = {
        "revision": head.revision,
        "type": int(change.type),
        "key_id": change.key_id,
        "project_id": change.project_id,
        "environment_id": change.environment_id,
        "time": change.time,
        "actor_key_id": change.actor.key_id,
        "actor_name": change.actor.name,
        "detail": detail,
    }
    digest = _chain(bytes(head.hash), list(row.values()))
    transaction.run(EventRow.insert(**row, hash=digest))
    transaction.run(LogHeadRow.update(hash=digest).where(LogHeadRow.id == 1))
    return int(head.revision)


def head(store: Store) -> int:
    """Return the newest revision; 0: nothing has happened yet."""
    ((revision,),) = store.read("SELECT revision FROM log_head WHERE id = 1")
    return int(revision)


def changed_keys(store: Store, after: int, limit: int) -> list[tuple[int, str]]:
    """Return revision and key id of the first ``limit`` events after a revision, in order."""
    return [
        (int(revision), key_id)
        for revision, key_id in store.read(
            "SELECT revision, key_id FROM event WHERE revision > ? ORDER BY revision LIMIT ?", (after, limit)
        )
    ]


@dataclass(frozen=True)
class Audit:
    """What an audit found: true if nothing is wrong. At most 20 problems of a kind are named."""

    events: int
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems


def audit(store: Store) -> Audit:
    """Check the whole chain, its head, and that the keys agree with it. Changes may go on meanwhile."""
    ((newest, newest_hash, strays),) = store.read(
        "SELECT revision, hash, (SELECT COUNT(*) FROM event e WHERE e.revision < 1 OR e.revision > h.revision) "
        "FROM log_head h WHERE id = 1"
    )
    problems: list[str] = [f"{strays} events stand outside the log: before its first or after its head"] * bool(strays)
    expected, chained = 1, GENESIS
    for revision, *content, stored in _events(store, up_to=newest):
        if revision != expected:
            problems.append(f"events {expected} to {revision - 1} are missing")
        elif _chain(chained, [revision, *content]) != bytes(stored):
            problems.append(f"event {revision} is not what was written, or the one before it is not")
        expected, chained = revision + 1, bytes(stored)
        if len(problems) >= _SHOWN:
            break
    else:
        if expected <= newest:
            problems.append(f"events {expected} to {newest} are missing")
        elif chained != bytes(newest_hash):
            problems.append(f"the head's hash is not that of event {newest}")
    return Audit(events=newest, problems=(*problems, *_disagreements(store, up_to=newest)))


def _events(store: Store, up_to: int) -> Iterator[tuple[Any, ...]]:
    after = 0
    while True:
        page = store.read(
            "SELECT revision, type, key_id, project_id, environment_id, time, actor_key_id, actor_name, detail, hash "
            "FROM event WHERE revision > ? AND revision <= ? ORDER BY revision LIMIT ?",
            (after, up_to, _PAGE),
        )
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1][0]


def _disagreements(store: Store, up_to: int) -> Iterator[str]:
    last = "(SELECT key_id, MAX(revision) AS revision FROM event WHERE revision <= ? GROUP BY key_id)"
    for (key_id,) in store.read(
        f"SELECT k.id FROM api_key k LEFT JOIN {last} e ON e.key_id = k.id "  # noqa: S608 - no input in it
        "WHERE k.revision <= ? AND (e.revision IS NULL OR e.revision <> k.revision) LIMIT ?",
        (up_to, up_to, _SHOWN),
    ):
        yield f"key {key_id} was changed without an event"
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


def _chain(before: bytes, content: list[object]) -> bytes:
    text = json.dumps(content, separators=(",", ":"))
    return hashlib.sha256(before + text.encode()).digest()
