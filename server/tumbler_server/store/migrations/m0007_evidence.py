"""Step 7: events say who called from where, and what is stored of their key; all keys that are there are recorded so.

The forms of the digest and of the chain are written out here, as they are in ``keys.evidence`` and ``events.log``: a
released step does not change with them.
"""

import hashlib
import json
import time
import zlib
from typing import Any

import peewee

from tumbler_server import logs
from tumbler_server.store.database import COCKROACHDB, SQLITE

_COLUMNS = (
    "id", "project_id", "environment_id", "name", "key_prefix", "search_text", "owner_id", "scopes", "metadata",
    "allowed_cidrs", "active", "create_time", "created_by_key_id", "created_by_name", "update_time", "expire_time",
    "revoke_time", "revoke_reason", "revoke_comment", "replaces_key_id", "replaced_by_key_id", "grace_expire_time",
    "rotation_interval", "rotation_next_time", "rotation_due_revision", "rotation_overdue", "webhook_url",
    "expiry_warnings", "secret_hash", "digest", "pepper_id",
)  # fmt: skip
_RECORDED = 13
_BATCH = 1_000
_SAY_EVERY = 10.0

_log = logs.get_logger(__name__)


def apply(dialect: str, db: peewee.Database) -> None:
    """Add the columns, and an event for each key. CockroachDB's keys are recorded as they change."""
    blob = "BLOB" if dialect == SQLITE else "BYTEA"
    zeros = bytes(32).hex()
    none = f"BLOB NOT NULL DEFAULT x'{zeros}'" if dialect == SQLITE else f"BYTEA NOT NULL DEFAULT '\\x{zeros}'"
    for statement in (
        "ALTER TABLE event ADD COLUMN address TEXT",
        "ALTER TABLE event ADD COLUMN request_id TEXT",
        f"ALTER TABLE event ADD COLUMN record {blob}",
        f"ALTER TABLE log_head ADD COLUMN kept {none}",
    ):
        db.execute_sql(statement)
    if dialect != COCKROACHDB:  # there no statement of the same transaction writes to a new column
        _record(db)


def _record(db: peewee.Database) -> None:
    ((revision, digest),) = db.execute_sql("SELECT revision, hash FROM log_head WHERE id = 1").fetchall()
    slot, now = db.param, time.time_ns() // 1000
    digest, after, said = bytes(digest), "", time.monotonic()
    read = f"SELECT {', '.join(_COLUMNS)} FROM api_key WHERE id > {slot} ORDER BY id LIMIT {_BATCH}"  # noqa: S608
    insert = (
        "INSERT INTO event (revision, type, key_id, project_id, environment_id, time, actor_key_id, actor_name, "  # noqa: S608
        f"detail, address, request_id, record, hash) VALUES ({', '.join([slot] * 13)})"
    )
    while rows := db.execute_sql(read, (after,)).fetchall():
        events = []
        for row in rows:
            revision += 1
            record = _digest(dict(zip(_COLUMNS, row, strict=True)))
            content = [revision, _RECORDED, *row[:3], now, "", "migrate", "{}", "", "", record.hex()]
            text = json.dumps(content, separators=(",", ":"))
            digest = hashlib.sha256(digest + text.encode()).digest()
            events.append((*content[:-1], record, digest))
        db.cursor().executemany(insert, events)
        db.cursor().executemany(
            f"UPDATE api_key SET revision = {slot} WHERE id = {slot}",  # noqa: S608
            [(event[0], event[2]) for event in events],
        )
        after = rows[-1][0]
        if time.monotonic() - said >= _SAY_EVERY:
            said = time.monotonic()
            _log.info("recording the keys in the log", recorded=revision)
    db.execute_sql(f"UPDATE log_head SET revision = {slot}, hash = {slot} WHERE id = 1", (revision, digest))  # noqa: S608


def _digest(row: dict[str, Any]) -> bytes:
    plain = row | {"active": bool(row["active"]), "rotation_overdue": bool(row["rotation_overdue"])}
    plain["digest"] = row["digest"] and bytes(row["digest"]).hex()
    texts = [json.dumps(pair, separators=(",", ":")).encode() for pair in plain.items()]
    checks = b"".join(zlib.crc32(text).to_bytes(4, "big") for text in texts)
    return hashlib.sha256(b"\n".join(texts)).digest() + checks
