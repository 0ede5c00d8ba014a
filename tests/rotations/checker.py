"""The check that a history of rotations keeps the promises. It is pure, and tested on doctored histories."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from tests.rotations.history import OK, UNKNOWN, Claim, History

SHOWN = 20
"""Violations that are reported one by one. All are counted."""

TOLD = {
    "ROTATION_DUE": "key.rotation_due",
    "ROTATION_OVERDUE": "key.rotation_overdue",
    "ROTATED": "key.rotated",
    "REVOKED": "key.revoked",
    "DEACTIVATED": "key.deactivated",
    "EXPIRING": "key.expiring",
}
"""The events that webhooks announce, and their names in messages (api/event.proto, WebhookDelivery.type)."""

_LATE = frozenset({"KEY_SUPERSEDED", "KEY_REVOKED"})
"""The reasons that refuse a claim after another claim, a manual rotation, or a revocation."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


@dataclass
class Findings:
    """The violations in a history."""

    violations: int = 0
    examples: list[str] = field(default_factory=list)

    def violate(self, text: str) -> None:
        """Record a broken promise."""
        self.violations += 1
        if len(self.examples) < SHOWN:
            self.examples.append(text)


def check(history: History) -> Findings:
    """Return the violations in a history. All of its keys must have a webhook and a schedule."""
    findings = Findings()
    for rule in (_announced, _recorded, _delivered, _arrived, _claimed, _succeeded, _proven):
        rule(history, findings)
    return findings


def _announced(history: History, findings: Findings) -> None:
    """Check that each rotation is announced once, and that each living key without a successor has an announcement."""
    due = Counter((event.key_id, event.detail["due_time"]) for event in history.events if event.type == "ROTATION_DUE")
    for (key_id, _), times in due.items():
        if times > 1:
            findings.violate(f"key {key_id}: one rotation was announced {times} times")
    announcements = {(event.revision, event.key_id) for event in history.events if event.type == "ROTATION_DUE"}
    for key in history.keys:
        if key.replaced_by or key.revoked:
            continue
        if not key.due_revision:
            findings.violate(f"key {key.id}: its rotation was due, and not announced")
        elif (key.due_revision, key.id) not in announcements:
            findings.violate(f"key {key.id}: its row names an announcement that is not in the log")


def _recorded(history: History, findings: Findings) -> None:
    """Check that each announced event has exactly one delivery, and each delivery its event."""
    rows = _grouped(history.rows, lambda row: row.revision)
    events = {event.revision: event for event in history.events if event.type in TOLD}
    for revision, event in events.items():
        if (found := len(rows.get(revision, ()))) != 1:
            findings.violate(f"event {revision} ({event.type}) has {found} deliveries")
    for row in history.rows:
        told = events.get(row.revision)
        if told is None or (told.key_id, TOLD[told.type]) != (row.key_id, row.type):
            findings.violate(f"delivery {row.webhook_id} is of no such event")
    for webhook_id, same in _grouped(history.rows, lambda row: row.webhook_id).items():
        if len(same) > 1:
            findings.violate(f"{webhook_id} is the id of {len(same)} deliveries")


def _delivered(history: History, findings: Findings) -> None:
    """Check that each delivery has ended: it was accepted by a receiver, or it was outdated."""
    taken = {arrival.webhook_id for arrival in history.arrivals if 200 <= arrival.status < 300}
    keys = {key.id: key for key in history.keys}
    for row in history.rows:
        if row.state == "DELIVERED":
            if row.webhook_id not in taken:
                findings.violate(f"{row.webhook_id} ({row.type}) counts as delivered, and no receiver took it")
            continue
        if row.state != "OUTDATED" or row.type != TOLD["ROTATION_DUE"]:
            findings.violate(f"{row.webhook_id} ({row.type}) is {row.state}")
            continue
        key = keys.get(row.key_id)
        if key is None or not (key.replaced_by or key.revoked):
            findings.violate(f"{row.webhook_id} counts as outdated, and key {row.key_id} was not rotated")


def _arrived(history: History, findings: Findings) -> None:
    """Check that each webhook is signed and belongs to a delivery, and that an id has one message at every attempt."""
    rows = {row.webhook_id: row for row in history.rows}
    for arrival in history.arrivals:
        if not arrival.signed:
            findings.violate(f"{arrival.webhook_id} came without a signature that fits")
        row = rows.get(arrival.webhook_id)
        if row is None or (row.type, row.key_id) != (arrival.type, arrival.key_id):
            findings.violate(f"{arrival.webhook_id} came, and is no such delivery's")
    for webhook_id, same in _grouped(history.arrivals, lambda arrival: arrival.webhook_id).items():
        if len({arrival.digest for arrival in same}) > 1:
            findings.violate(f"{webhook_id} came with different messages")
    for same in _grouped(history.arrivals, lambda arrival: arrival.digest).values():
        if len(ids := {arrival.webhook_id for arrival in same}) > 1:
            findings.violate(f"one message came as {', '.join(sorted(ids))}")


def _claimed(history: History, findings: Findings) -> None:
    """Check that a token works once, that each claim is in the log once, and that each in the log was requested."""
    rows = {row.webhook_id: row for row in history.rows}
    keys = {key.id: key for key in history.keys}
    in_log = Counter(event.key_id for event in history.events if event.type == "ROTATION_CLAIMED")
    attempts: defaultdict[str, list[Claim]] = defaultdict(list)
    for claim in history.claims:
        if (row := rows.get(claim.webhook_id)) is not None:
            attempts[row.key_id].append(claim)
        if claim.outcome not in (OK, UNKNOWN, *_LATE):
            findings.violate(f"the claim of {claim.webhook_id} ended with {claim.outcome}")
    for key_id in attempts.keys() | in_log.keys():
        outcomes = Counter(claim.outcome for claim in attempts[key_id])
        if in_log[key_id] > 1:
            findings.violate(f"key {key_id} was claimed {in_log[key_id]} times")
        if outcomes[OK] > 1:
            findings.violate(f"key {key_id}: {outcomes[OK]} claims were answered OK")
        if outcomes[OK] and not in_log[key_id]:
            findings.violate(f"key {key_id}: a claim was answered OK, and is not in the log")
        if in_log[key_id] and not outcomes[OK] and not outcomes[UNKNOWN]:
            findings.violate(f"key {key_id} was claimed, and nobody can have done that")
        key = keys.get(key_id)
        if outcomes & Counter(_LATE) and not outcomes[OK] and (key is None or not (key.replaced_by or key.revoked)):
            findings.violate(f"key {key_id}: a claim was refused that nothing had come before")
        for claim in attempts[key_id]:
            if claim.outcome == OK and (key is None or key.replaced_by != claim.successor):
                findings.violate(f"key {key_id}: the successor that was shown is not the one that it has")


def _succeeded(history: History, findings: Findings) -> None:
    """Check that a claimed or rotated key has exactly one successor, and that the two keys name each other."""
    keys = {key.id: key for key in history.keys}
    successors = _grouped((key for key in history.keys if key.replaces), lambda key: key.replaces)
    for key_id, after in successors.items():
        if len(after) > 1:
            findings.violate(f"key {key_id} has {len(after)} successors")
        before = keys.get(key_id)
        if before is None or before.replaced_by not in {key.id for key in after}:
            findings.violate(f"key {key_id} does not know its successor")
    for key in history.keys:
        if key.replaced_by and key.id not in successors:
            findings.violate(f"the successor of key {key.id} does not exist")
    rotated = Counter(event.key_id for event in history.events if event.type == "ROTATED")
    for event in history.events:
        if event.type == "ROTATION_CLAIMED" and not rotated[event.key_id]:
            findings.violate(f"key {event.key_id} was claimed and not rotated")
    for key_id, times in rotated.items():
        if times > 1 or key_id not in successors:
            findings.violate(f"key {key_id} was rotated {times} times and has {len(successors.get(key_id, ()))}")


def _proven(history: History, findings: Findings) -> None:
    """Check that the verdict on every secret that was shown follows from its key's row."""
    keys = {key.id: key for key in history.keys}
    for key_id, verdict in history.verdicts.items():
        key = keys.get(key_id)
        if key is None:
            findings.violate(f"key {key_id} was shown, and is gone")
            continue
        expected = "REVOKED" if key.revoked else "SUPERSEDED" if key.ended else "VALID"
        if verdict != expected:
            findings.violate(f"the secret of key {key_id} is {verdict}, not {expected}")


def _grouped(items: Iterable[T], by: Callable[[T], K]) -> dict[K, list[T]]:
    groups: defaultdict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[by(item)].append(item)
    return dict(groups)
