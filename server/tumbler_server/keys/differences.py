"""What an event's detail says of a key's fields: as they were made, and as they changed, in words that people read."""

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
"""What a detail says that is no value of a field, nor anybody's words."""

_LONGEST = 2_048
"""Characters of a value that are told; of a longer one its length and digest are, so that no event is large."""

OLD, NEW = "old.", "new."
"""How the names of values begin: of a field as it was, and as it became. A field that was or is empty has none."""


def made(key: Key) -> dict[str, str]:
    """Return what a key that was made can do, and what else was chosen of it."""
    return {f"{NEW}{name}": value for name, value in _told(key).items() if value}


def between(before: Key, after: Key) -> dict[str, str]:
    """Return which fields an update changed, from what and to what; for scopes also which. Nothing: none."""
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
    """Return a detail without the values of fields: for who may verify keys, and not read them."""
    return {name: value for name, value in detail.items() if name in _PUBLIC}


def _told(key: Key) -> dict[str, str]:
    """Return a key's fields as text, those of its schedule by ``rotation.…``; empty where there is nothing to say."""
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
