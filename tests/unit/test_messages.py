"""When a webhook message is out of date, row by row."""

from types import SimpleNamespace
from typing import Any

import pytest

from tumbler_server.clock import DAY, NEVER
from tumbler_server.events.log import EventType
from tumbler_server.webhooks import messages

NOW = 1_893_456_000_000_000

KEY = {
    "active": True,
    "revoke_time": NEVER,
    "replaced_by_key_id": "",
    "expire_time": NOW + DAY,
    "rotation_due_revision": 10,
    "webhook_url": "https://hooks.example.com/",
}

DUE = {"type": int(EventType.ROTATION_DUE), "revision": 10, "url": "https://hooks.example.com/", "detail": "{}"}
OVERDUE = DUE | {"type": int(EventType.ROTATION_OVERDUE), "revision": 20}
EXPIRING = DUE | {
    "type": int(EventType.EXPIRING),
    "revision": 30,
    "detail": '{"expire_time": "2030-01-02T00:00:00Z"}',
}
REVOKED = DUE | {"type": int(EventType.REVOKED), "revision": 40}

TRUE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("due", DUE, {}),
    ("overdue", OVERDUE, {}),
    ("expiring", EXPIRING, {}),
    ("expiring elsewhere", EXPIRING, {"webhook_url": "https://other.example.com/"}),
    ("revoked", REVOKED, {"revoke_time": NOW}),
    ("revoked long ago", REVOKED, {"revoke_time": NOW, "expire_time": NOW - DAY, "webhook_url": ""}),
]

OUTDATED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        (f"{name}, {how}", delivery, change)
        for name, delivery in (("due", DUE), ("overdue", OVERDUE))
        for how, change in (
            ("announced anew", {"rotation_due_revision": 21}),
            ("not due", {"rotation_due_revision": 0}),
            ("sent elsewhere now", {"webhook_url": "https://other.example.com/"}),
            ("sent nowhere now", {"webhook_url": ""}),
            ("revoked", {"revoke_time": NOW}),
            ("rotated", {"replaced_by_key_id": "0123456789abcdef"}),
            ("switched off", {"active": False}),
            ("expired", {"expire_time": NOW}),
        )
    ),
    ("expiring, never", EXPIRING, {"expire_time": NEVER}),
    ("expiring, later", EXPIRING, {"expire_time": NOW + 2 * DAY}),
    ("expiring, revoked", EXPIRING, {"revoke_time": NOW}),
    ("expiring, rotated", EXPIRING, {"replaced_by_key_id": "0123456789abcdef"}),
    ("expiring, switched off", EXPIRING, {"active": False}),
]


@pytest.mark.parametrize(("delivery", "change"), [row[1:] for row in TRUE], ids=[row[0] for row in TRUE])
def test_true(delivery: dict[str, Any], change: dict[str, Any]) -> None:
    """A message that is true of its key is sent."""
    assert not messages.outdated(SimpleNamespace(**delivery), SimpleNamespace(**KEY | change), NOW)


@pytest.mark.parametrize(("delivery", "change"), [row[1:] for row in OUTDATED], ids=[row[0] for row in OUTDATED])
def test_outdated(delivery: dict[str, Any], change: dict[str, Any]) -> None:
    """A message that is no longer true of its key is not sent, above all not a claim token."""
    assert messages.outdated(SimpleNamespace(**delivery), SimpleNamespace(**KEY | change), NOW)
