"""The human-readable detail of events: a key's fields as created, and as changed."""

import hashlib
import json

from tumbler_server.clock import NEVER, SECOND, rfc3339
from tumbler_server.keys.record import Key

UPDATABLE = ("name", "owner_id", "scopes", "metadata", "allowed_cidrs", "expire_time", "rotation")

_PUBLIC = frozenset(
    {
        *("fields", "replaces_key_id", "replaced_by_key_id", "grace_expire_time", "old_key_ends", "first_used_key_id"),
        *("reason", "due_time", "expire_time"),
    }
)
"""The names in a detail that hold neither a field's value nor free text."""

_LONGEST = 2_048
"""Most characters of a value in a detail. A longer value is replaced by its length and digest, to keep events small."""

OLD, NEW = "old.", "new."
"""Name prefixes of a field's value before and after a change. An empty value is left out."""


def made(key: Key) -> dict[str, str]:
    """Return the detail of a key's creation: its non-empty fields."""
    return {f"{NEW}{name}": value for name, value in _told(key).items() if value}


def between(before: Key, after: Key) -> dict[str, str]:
    """Return the detail of an update: changed fields, old and new values, and scopes added and removed.

    The detail is empty if nothing changed.
    """
    old, new = _told(before), _told(after)
    changed = [name for name in old if old[name] != new[name]]
    if not changed:
        return {}
    fields = dict.fromkeys(name.partition(".")[0] for name in changed)
    detail = {"fields": ",".join(name for name in UPDATABLE if name in fields)}
    for prefix, told in ((OLD, old), (NEW, new)):
        detail |= {f"{prefix}{name}": told[name] for name in changed if told[name]}
    if added := [scope for scope in after.scopes if scope not in before.scopes]:
        detail["scopes_added"] = ",".join(added)
    if removed := [scope for scope in before.scopes if scope not in after.scopes]:
        detail["scopes_removed"] = ",".join(removed)
    return detail


def public(detail: dict[str, str]) -> dict[str, str]:
    """Return a detail without field values, for callers that may verify keys but not read them."""
    return {name: value for name, value in detail.items() if name in _PUBLIC}


def _told(key: Key) -> dict[str, str]:
    """Return a key's fields as text, empty if unset. Those of its schedule are named ``rotation.…``."""
    told = {
        "name": key.name,
        "owner_id": key.owner_id,
        "scopes": ",".join(key.scopes),
        "metadata": json.dumps(key.metadata, sort_keys=True, ensure_ascii=False) if key.metadata else "",
        "allowed_cidrs": ",".join(key.allowed_cidrs),
        "expire_time": "" if key.expire_time == NEVER else rfc3339(key.expire_time),
        "rotation.interval": _seconds(key.rotation_interval) if key.rotation_interval else "",
        "rotation.webhook_url": key.webhook_url,
    }
    return {name: value if len(value) <= _LONGEST else _digest(value) for name, value in told.items()}


def _digest(value: str) -> str:
    return f"({len(value):,} characters, sha256:{hashlib.sha256(value.encode()).hexdigest()})"


def _seconds(span: int) -> str:
    return f"{span // SECOND}.{span % SECOND:06}".rstrip("0").rstrip(".") + "s"
