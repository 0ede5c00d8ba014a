"""Messages of webhooks. They contain no secret, and a claim token only if the receiver needs it."""

import json
from collections.abc import Callable
from typing import Any

from tumbler_server.clock import NEVER, rfc3339
from tumbler_server.events.log import EventType
from tumbler_server.store.models import lives

TYPES = {
    EventType.ROTATION_DUE: "key.rotation_due",
    EventType.ROTATION_OVERDUE: "key.rotation_overdue",
    EventType.ROTATED: "key.rotated",
    EventType.REVOKED: "key.revoked",
    EventType.DEACTIVATED: "key.deactivated",
    EventType.EXPIRING: "key.expiring",
}
"""The events that webhooks announce, and their names in messages."""

_TOLD = {
    EventType.ROTATION_DUE: ("due_time",),
    EventType.ROTATION_OVERDUE: ("due_time",),
    EventType.ROTATED: ("replaced_by_key_id", "grace_expire_time", "old_key_ends"),
    EventType.REVOKED: ("reason",),
    EventType.DEACTIVATED: (),
    EventType.EXPIRING: ("expire_time",),
}
"""The fields of an event's detail that messages contain. Others, such as comments, are left out."""

_WITH_TOKEN = (EventType.ROTATION_DUE, EventType.ROTATION_OVERDUE)

ClaimToken = Callable[[str, int], str]
"""Makes the claim token for a key id and the revision of its ROTATION_DUE event."""


def outdated(delivery: Any, key: Any, now: int) -> bool:
    """Return whether a delivery no longer fits the current row of its key."""
    kind = EventType(delivery.type)
    if kind in _WITH_TOKEN:
        # Anyone who reads the message can claim the successor, so it goes only to the key's current URL.
        announced = key.rotation_due_revision
        fits = announced == delivery.revision if kind is EventType.ROTATION_DUE else 0 < announced < delivery.revision
        return not (fits and lives(key, now) and key.webhook_url == delivery.url)
    if kind is EventType.EXPIRING:
        expires = key.expire_time != NEVER and json.loads(delivery.detail)["expire_time"] == rfc3339(key.expire_time)
        return not (expires and lives(key, now))
    return False


def body(delivery: Any, key: Any, claim_token: ClaimToken) -> str:
    """Return the message of a delivery that is not outdated. It is the same at every attempt."""
    kind = EventType(delivery.type)
    detail = json.loads(delivery.detail)
    data = {"key_id": delivery.key_id, "project_id": delivery.project_id}
    data |= {name: detail[name] for name in _TOLD[kind] if name in detail}
    if kind in _WITH_TOKEN:
        data["claim_token"] = claim_token(delivery.key_id, key.rotation_due_revision)
    message = {"type": TYPES[kind], "timestamp": rfc3339(delivery.event_time), "data": data}
    return json.dumps(message, separators=(",", ":"))
