"""What an event says of a key's row: a digest of all that is stored of it, so that a change by hand shows.

The digest covers the proofs of the secret too. ``audit.audit`` compares every row with the digest in its last event;
whoever changes a key compares first, so that a change by hand is told by the next event and not covered up by it.
"""

import hashlib
import json
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tumbler_server.events import log
from tumbler_server.events.kept import ALTERED
from tumbler_server.keys import record
from tumbler_server.store.database import Read

COLUMNS = (
    "id", "project_id", "environment_id", "name", "key_prefix", "search_text", "owner_id", "scopes", "metadata",
    "allowed_cidrs", "active", "create_time", "created_by_key_id", "created_by_name", "update_time", "expire_time",
    "revoke_time", "revoke_reason", "revoke_comment", "replaces_key_id", "replaced_by_key_id", "grace_expire_time",
    "rotation_interval", "rotation_next_time", "rotation_due_revision", "rotation_overdue", "webhook_url",
    "expiry_warnings", "secret_hash", "digest", "pepper_id",
)  # fmt: skip
"""What the digest covers, in its order. It is the form of the log, which no release changes: a new column goes into
``LATER``."""

LATER: Mapping[str, object] = {"grace_ends_on_first_use": False, "awaits_first_use": False}
"""Columns that were added since, and their defaults. One that has its default is left out of the digest, which is
then the same as before there was the column."""

UNCOVERED = ("last_used_time", "alarm_time", "revision")
"""Written without an event, or only with it: ``revision`` says which event is a key's last."""

# Written so that only the index by key can serve the subquery: for MAX(revision) PostgreSQL may go back through the
# whole log to find a key that has not changed for long. The ids come as VALUES, and the subquery does not compare with
# k.id: that column's collation is another than the index's, which would not serve then.
_FROM = (
    "FROM (VALUES {}) AS asked JOIN api_key k ON k.id = asked.column1 "  # noqa: S608 - no input in it
    "LEFT JOIN event e ON e.revision = (SELECT revision FROM event WHERE (key_id, revision) >= (asked.column1, 0) "
    f"AND (key_id, revision) <= (asked.column1, {2**63 - 1}) ORDER BY key_id DESC, revision DESC LIMIT 1)"
)
_SELECT = (
    "SELECT e.revision = k.revision, e.record, k.revision, k.alarm_time, "
    f"{', '.join(f'k.{name}' for name in (*COLUMNS, *LATER))} {_FROM}"
)
_BESIDE = ("e.revision", "e.record", "k.search_text")

_SELECT_WITH_RECORD = f"SELECT {', '.join((*_BESIDE, *(f'k.{name}' for name in record.COLUMNS)))} {_FROM}"

OF_RECORD = slice(len(_BESIDE), None)
"""Where in a row of ``with_records`` the record is."""

ID = len(_BESIDE) + record.COLUMNS.index("id")
"""Where in such a row the key's id is."""

_NAMES = ("last", "told", "search_text", *record.COLUMNS)
_covered = operator.itemgetter(*map(_NAMES.index, COLUMNS))
_later = operator.itemgetter(*map(_NAMES.index, LATER))
_REVISION = _NAMES.index("revision")
_ACTIVE, _OVERDUE, _PROOF = map(COLUMNS.index, ("active", "rotation_overdue", "digest"))
_FORM = "\n".join(f'["{name}",%s]' for name in COLUMNS)
_quoted = json.encoder.encode_basestring_ascii
_TRUTH = {0: "false", 1: "true"}

SIZE = hashlib.sha256().digest_size
"""Bytes of a digest without what names the columns."""

_WIDTH = 4
_text = json.JSONEncoder(separators=(",", ":")).encode
_BLOBS = frozenset({"digest"})
_TRUTHS = frozenset({"active", "rotation_overdue", "grace_ends_on_first_use", "awaits_first_use"})


def digest(row: Mapping[str, Any]) -> bytes:
    """Return the digest of a row: 32 bytes of SHA-256, and four for each column, which name what differs."""
    values = [(name, _plain(name, row[name])) for name in COLUMNS]
    later = [(name, _plain(name, row[name])) for name, default in LATER.items() if row[name] != default]
    texts = [_text(pair).encode() for pair in values]
    more = {name: _text((name, value)).encode() for name, value in later}
    checks = [zlib.crc32(text) for text in texts] + [zlib.crc32(more[name]) if name in more else 0 for name in LATER]
    while len(checks) > len(COLUMNS) and not checks[-1]:
        checks.pop()
    whole = hashlib.sha256(b"\n".join((*texts, *more.values()))).digest()
    return whole + b"".join(check.to_bytes(_WIDTH, "big") for check in checks)


def differences(told: bytes, row: Mapping[str, Any]) -> list[str]:
    """Return the columns of a row that are not as its last event told; none: it is what was written."""
    found = digest(row)
    if found == told:
        return []
    names = (*COLUMNS, *LATER)
    parts = [each[SIZE:].ljust(_WIDTH * len(names), b"\0") for each in (told, found)]
    cut = [[part[at : at + _WIDTH] for at in range(0, len(part), _WIDTH)] for part in parts]
    return [name for name, *pair in zip(names, *cut, strict=True) if pair[0] != pair[1]] or ["its digest"]


def with_records(read: Read, key_ids: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the keys' last events, and behind each what ``record.SELECT`` gives; for the hot path."""
    return read(_SELECT_WITH_RECORD.format(_slots(key_ids)), key_ids)


def altered_in(row: tuple[Any, ...]) -> list[str]:
    """Return which columns of a row of ``with_records`` are not as its key's last event told.

    The text that ``digest`` hashes is made by one format here: each key that is not in the cache waits for it. Where it
    does not fit, ``differences`` has the last word.
    """
    last, told = row[0], row[1]
    if last is None:
        return []  # no event tells of it: loaded in bulk, past the server; the audit names it
    if last != row[_REVISION]:
        return ["revision"]
    if told is None:
        return []  # made before schema 7
    told = log.blob(told)
    if not any(_later(row)):
        values: list[Any] = [_quoted(value) if value.__class__ is str else value for value in _covered(row)]
        proof = values[_PROOF]
        values[_ACTIVE] = _TRUTH.get(values[_ACTIVE])
        values[_OVERDUE] = _TRUTH.get(values[_OVERDUE])
        values[_PROOF] = "null" if proof is None else f'"{log.blob(proof).hex()}"'
        if hashlib.sha256((_FORM % tuple(values)).encode()).digest() == told[:SIZE]:
            return []
    return differences(told or b"?", dict(zip(_NAMES, row, strict=True)))


def intact(read: Read, key_id: str) -> bool:
    """Return whether a key's row matches its last event. A key without a row, or without any event, does."""
    return not any(altered_in(row) for row in with_records(read, [key_id]))


def stored(read: Read, key_ids: Sequence[str]) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Return what is stored of keys, by their ids, and which columns of each are not as its last event told."""
    return {row.columns["id"]: (row.columns, row.altered()) for row in rows(read, key_ids)}


def rows(read: Read, key_ids: Sequence[str]) -> "list[Row]":
    """Return the rows of keys, by their ids."""
    return [_row(row) for row in read(_SELECT.format(_slots(key_ids)), key_ids)] if key_ids else []


def page(read: Read, after: str, limit: int) -> "list[Row]":
    """Return the next rows after a key's id, in the order of ids."""
    key_ids = [key_id for (key_id,) in read("SELECT id FROM api_key WHERE id > ? ORDER BY id LIMIT ?", (after, limit))]
    found = {row.columns["id"]: row for row in rows(read, key_ids)}
    return [found[key_id] for key_id in key_ids if key_id in found]


def altered(names: Sequence[str]) -> dict[str, str]:
    """Return what an event's detail says of columns that had been changed by hand; nothing where none had."""
    return {ALTERED: ",".join(names)} if names else {}


@dataclass(frozen=True, slots=True)
class Row:
    """What is stored of a key.

    ``told`` is its last event's digest: None where the row names another event or there is none, empty where that was
    made before schema 7.
    """

    columns: dict[str, Any]
    told: bytes | None
    revision: int
    alarm_time: int

    def altered(self) -> list[str]:
        """Return the columns that are not as the last event told; none where that told nothing."""
        if self.told is None:
            return ["revision"]
        return differences(self.told, self.columns) if self.told else []


def _slots(key_ids: Sequence[str]) -> str:
    return ", ".join(["(?)"] * len(key_ids))


def _row(row: tuple[Any, ...]) -> Row:
    last, record, revision, alarm_time, *values = row
    told = b"" if record is None else log.blob(record) or b"?"
    named = last and isinstance(revision, int)  # SQLite compares a text that begins with the number as equal to it
    return Row(dict(zip((*COLUMNS, *LATER), values, strict=True)), told if named else None, revision, alarm_time)


def _plain(name: str, value: Any) -> object:
    if isinstance(value, str if name in _BLOBS else (bytes, bytearray, memoryview)):
        return {"type": type(value).__name__, "value": str(value)}  # no digest has an object: SQLite takes any type
    if name in _TRUTHS and value in (0, 1):
        return bool(value)  # SQLite has numbers for them, and takes anything
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else value
