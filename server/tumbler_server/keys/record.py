"""A key's record as plain data, used by ``decide``, the caches and the wire. It holds no secret and no hash."""

import enum
import functools
import itertools
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tumbler_server import limits
from tumbler_server.clock import NEVER
from tumbler_server.events.log import Actor
from tumbler_server.secrets.secret import HashedSecret
from tumbler_server.store.database import Read
from tumbler_server.store.models import ApiKeyRow, standing


class State(enum.IntEnum):
    """The state of a key. The numbers match the proto."""

    ACTIVE = 1
    INACTIVE = 2
    EXPIRED = 3
    REVOKED = 4
    SUPERSEDED = 5


class OldKeyEnds(enum.IntEnum):
    """When a rotated key stops working. The numbers match the proto."""

    AT_GRACE_END = 1
    ON_FIRST_USE = 2


REVOKE_REASONS = {0: "unspecified", 1: "compromised", 2: "superseded", 3: "owner_left", 4: "unused", 5: "other"}
"""The proto's numbers and their names in the event log."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key's record. Times are in microseconds. ``NEVER`` marks what has not happened or will not happen."""

    id: str
    project_id: str
    environment_id: str = ""
    name: str = ""
    key_prefix: str = ""
    owner_id: str = ""
    scopes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_cidrs: tuple[str, ...] = ()
    active: bool = True
    create_time: int = 0
    created_by: Actor = Actor("", "")
    update_time: int = 0
    expire_time: int = NEVER
    last_used_time: int = 0
    revoke_time: int = NEVER
    revoke_reason: int = 0
    revoke_comment: str = ""
    replaces_key_id: str = ""
    replaced_by_key_id: str = ""
    grace_expire_time: int = NEVER
    rotation_interval: int = 0
    rotation_next_time: int = NEVER
    rotation_due_revision: int = 0
    rotation_overdue: bool = False
    webhook_url: str = ""
    expiry_warnings: int = 0
    grace_ends_on_first_use: bool = False
    """Whether the successor's first use ends the grace period and is still pending."""
    awaits_first_use: bool = False
    """Whether this key's first use, still pending, ends the grace of the key it replaces. See ``verify.first_use``."""
    revision: int = 0
    rendered: Any = field(default=None, init=False, repr=False, compare=False)
    """A cached rendering of the record, set and used by the layer above."""

    @property
    def revoked(self) -> bool:
        """Whether the key was ended permanently. It does not depend on the clock."""
        return self.revoke_time != NEVER

    @property
    def etag(self) -> str:
        """A string that changes with every change of the key."""
        # With the time, since another change has this revision after the restore of a backup.
        return f'"{self.revision:x}-{self.update_time:x}"'

    def state(self, now: int) -> State:
        """Return the key's state at ``now``."""
        found = State(standing(self))
        return State.EXPIRED if found is State.ACTIVE and now >= self.expire_time else found


_OWN = 1_536
"""Most bytes that the service itself adds to a record: times, ids, the creator's name.
The comment of Revoke is not included, so no record is too large to revoke."""


def chosen(key: Key) -> dict[str, int]:
    """Return the most bytes that each caller-chosen field takes in the key's message, by field name."""
    return {
        "project_id": _sent(key.project_id),
        "environment_id": _sent(key.environment_id),
        "name": _sent(key.name),
        "owner_id": _sent(key.owner_id),
        "scopes": sum(map(_sent, key.scopes)),
        "metadata": sum(_FRAME + _sent(name) + _sent(value) for name, value in key.metadata.items()),
        "allowed_cidrs": sum(map(_sent, key.allowed_cidrs)),
        "rotation": _sent(key.webhook_url) + _FRAME,
    }


def weight(key: Key) -> int:
    """Return the most bytes that a key's message takes without the comment of Revoke."""
    return sum(chosen(key).values()) + _OWN


def size(key: Key) -> int:
    """Return the most bytes that a key's message takes."""
    return weight(key) + _sent(key.revoke_comment)


_FRAME = 5
"""Bytes around a string in a message, for its field number and its length. They take less than this up to 256 KiB."""


def _sent(text: str) -> int:
    return _FRAME + (len(text) if text.isascii() else len(text.encode()))


_BARE = 620
"""Bytes of a cached record without the caller-chosen fields: its object, its numbers, its cache entry."""


def memory(key: Key) -> int:
    """Return about how many bytes a cached record takes in memory, including its cached rendering.

    Values shared with other records are counted in full.
    """
    texts = (key.name, key.owner_id, key.key_prefix, key.revoke_comment, *key.scopes, *key.allowed_cidrs)
    held = (key.scopes, key.allowed_cidrs, key.metadata, *texts, *itertools.chain(*key.metadata.items()))
    return _BARE + sum(sys.getsizeof(each) for each in held if each) + sum(chosen(key).values())


_UNREAD = ("search_text", "alarm_time")
COLUMNS = [column.column_name for column in ApiKeyRow._meta.sorted_fields if column.name not in _UNREAD]

SELECT = f"SELECT {', '.join(COLUMNS)} FROM api_key"  # noqa: S608 - column names of our own
"""The query of the hot path. Building it with the ORM each time costs more than a whole gRPC call."""


def find(read: Read, key_id: str) -> Key | None:
    """Return the key with this id, or None. Does not check who may see it."""
    rows = read(f"{SELECT} WHERE id = ?", (key_id,))
    return from_tuple(rows[0])[0] if rows else None


def from_row(row: ApiKeyRow) -> Key:
    """Return the record of a row that the ORM loaded."""
    return from_tuple(tuple(getattr(row, column) for column in COLUMNS))[0]


def from_tuple(row: tuple[Any, ...]) -> tuple[Key, HashedSecret]:
    """Return the record and the secret's proofs from a row loaded with ``SELECT``."""
    # Columns are unpacked by position. By name it takes three times as long, and every cache miss pays for it.
    (
        key_id, project_id, environment_id, name, key_prefix, owner_id, scopes, metadata, allowed_cidrs, active,
        create_time, by_key_id, by_name, update_time, expire_time, last_used_time, revoke_time, revoke_reason,
        revoke_comment, replaces, replaced_by, grace_expire_time, interval, next_time, due_revision, overdue,
        webhook_url, expiry_warnings, ends_on_first_use, awaits_first_use, revision, secret_hash, digest, pepper_id,
    ) = row  # fmt: skip
    key = Key(
        key_id,
        _shared(project_id),
        _shared(environment_id),
        name,
        key_prefix,
        owner_id,
        _list(scopes),
        _object(metadata),
        _list(allowed_cidrs),
        bool(active),
        create_time,
        _actor(by_key_id, by_name),
        update_time,
        NEVER if expire_time == NEVER else expire_time,  # share one int object, here and below
        last_used_time,
        NEVER if revoke_time == NEVER else revoke_time,
        revoke_reason,
        revoke_comment,
        replaces,
        replaced_by,
        NEVER if grace_expire_time == NEVER else grace_expire_time,
        interval,
        NEVER if next_time == NEVER else next_time,
        due_revision,
        bool(overdue),
        _shared(webhook_url),
        expiry_warnings,
        bool(ends_on_first_use),
        bool(awaits_first_use),
        revision,
    )
    return key, HashedSecret(secret_hash, None if digest is None else bytes(digest), pepper_id)


# Many keys of a project have equal values. Sharing them halves the memory of a cache of 100,000 records. Records are
# frozen, so shared values do not change.

_ALIKE, _LONG = limits.ALIKE_VALUES.most, limits.ALIKE_TEXT.most
"""Most distinct values of a kind to share, and the most characters of a shared value. Longer ones are seldom equal."""


def _shared(text: str) -> str:
    return _short_text(text) if len(text) <= _LONG else text


@functools.lru_cache(_ALIKE)
def _short_text(text: str) -> str:
    return text


def _list(text: str) -> tuple[str, ...]:
    return _short_list(text) if len(text) <= _LONG else tuple(json.loads(text))


@functools.lru_cache(_ALIKE)
def _short_list(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def _object(text: str) -> dict[str, str]:
    return _short_object(text) if len(text) <= _LONG else dict(json.loads(text))


@functools.lru_cache(_ALIKE)
def _short_object(text: str) -> dict[str, str]:
    return dict(json.loads(text))


@functools.lru_cache(_ALIKE)
def _actor(key_id: str, name: str) -> Actor:
    return Actor(key_id, name)  # ids and names are never long


def from_columns(columns: Mapping[str, Any]) -> Key:
    """Return the record of a row given as a mapping. A missing column counts as 0."""
    return from_tuple(tuple(columns.get(name, 0) for name in COLUMNS))[0]


def to_columns(key: Key) -> dict[str, Any]:
    """Return the row of a record, without the proofs of its secret."""
    columns = {name: getattr(key, name) for name in COLUMNS if hasattr(key, name)}
    columns["scopes"] = json.dumps(key.scopes)
    columns["metadata"] = json.dumps(key.metadata, sort_keys=True)
    columns["allowed_cidrs"] = json.dumps(key.allowed_cidrs)
    columns["created_by_key_id"] = key.created_by.key_id
    columns["created_by_name"] = key.created_by.name
    columns["search_text"] = f"{key.name}\n{key.key_prefix}".casefold()
    return columns
