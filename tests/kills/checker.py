"""The check that every acknowledged write exists, once. It is pure, and tested on doctored histories."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.kills.history import Event, History, Row, Write

SHOWN = 20
"""Violations that are reported one by one. All are counted."""

ANNOUNCED = "ROTATION_DUE"


@dataclass
class Findings:
    """The numbers of lost acknowledged writes, of actions done twice or without a request, and of differing keys."""

    lost: int = 0
    doubled: int = 0
    differing: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """Return the number of violations."""
        return self.lost + self.doubled + self.differing

    def lose(self, text: str) -> None:
        """Record an acknowledged write that is missing."""
        self.lost += 1
        self._tell(f"lost: {text}")

    def double(self, text: str) -> None:
        """Record an action that was done twice, or never acknowledged."""
        self.doubled += 1
        self._tell(f"doubled: {text}")

    def differ(self, text: str) -> None:
        """Record a key that differs from the result of its acknowledged writes."""
        self.differing += 1
        self._tell(f"differs: {text}")

    def _tell(self, text: str) -> None:
        if len(self.examples) < SHOWN:
            self.examples.append(text)


def check(history: History) -> Findings:
    """Compare the log, the rows, the request ids and the verdicts with what was acknowledged."""
    findings = Findings()
    for rule in (_logged, _announced, _ordered, _stored, _requested, _proven):
        rule(history, findings)
    return findings


def _logged(history: History, findings: Findings) -> None:
    """Check that each write's event is at its revision, and that every event belongs to a write."""
    events = {event.revision: event for event in history.events}
    claimed: set[int] = set()
    for write in history.writes:
        event = events.get(write.revision)
        if event is None or event != _event(write):
            findings.lose(f"{_event(write)} was acknowledged; the log has {event}")
        elif write.revision in claimed:
            findings.lose(f"{_event(write)} was acknowledged for two writes")
        else:
            claimed.add(write.revision)
    successors = {write.value for write in history.writes if write.type == "ROTATED"}
    for event in history.events:
        if event.revision in claimed or event.type == ANNOUNCED:
            continue
        if event.type == "CREATED" and event.key_id in successors:
            successors.remove(event.key_id)  # a second event would be one too many
        else:
            findings.double(f"{event} is in the log, and acknowledged to nobody")
    for key_id in sorted(successors):
        findings.lose(f"the log does not say that {key_id} was made, which a rotation was answered with")


def _announced(history: History, findings: Findings) -> None:
    """Check that the scheduler announced each due rotation once."""
    times = Counter(event.key_id for event in history.events if event.type == ANNOUNCED)
    for key_id in sorted(history.scheduled | times.keys()):
        if times[key_id] == 0:
            findings.lose(f"the rotation of key {key_id} was due, and not announced")
        elif key_id not in history.scheduled or times[key_id] > 1:
            findings.double(f"a rotation of key {key_id} was announced {times[key_id]} times")


def _ordered(history: History, findings: Findings) -> None:
    """Check that a write that began after another was acknowledged comes after it."""
    newest: dict[str, int] = {}
    for write in history.writes:
        if write.revision <= newest.get(write.key_id, 0):
            findings.differ(f"{_event(write)} was made before an earlier write of its key")
        newest[write.key_id] = write.revision


def _stored(history: History, findings: Findings) -> None:
    """Check that each key is the result of its writes, and that there are no other keys."""
    expected = made_by(history.writes)
    for key_id, row in expected.items():
        found = history.rows.get(key_id)
        if found is None:
            findings.lose(f"key {key_id} was made, and is gone")
        elif found != row:
            undone = "its revocation was undone: " if row.revoked and not found.revoked else ""
            findings.differ(f"key {key_id}: {undone}{found}, and was acknowledged as {row}")
    for key_id in sorted(history.rows.keys() - expected.keys()):
        findings.double(f"key {key_id} exists, and was shown to nobody")


def _requested(history: History, findings: Findings) -> None:
    """Check that each request id created exactly the key that its response named."""
    answered: dict[str, str] = {}
    for write in history.writes:
        if write.request_id:
            key_id = write.value if write.type == "ROTATED" else write.key_id
            if answered.setdefault(write.request_id, key_id) != key_id:
                findings.double(f"request {write.request_id} made {answered[write.request_id]} and {key_id}")
    for request_id, key_id in answered.items():
        if (found := history.requests.get(request_id)) != key_id:
            findings.lose(f"request {request_id} made {key_id}; the database says {found}")
    for request_id in sorted(history.requests.keys() - answered.keys()):
        findings.double(f"request {request_id} is in the database, and was answered to nobody")


def _proven(history: History, findings: Findings) -> None:
    """Check that the verdict on each secret follows from what was acknowledged."""
    for key_id, expected in history.expected.items():
        if (verdict := history.verdicts.get(key_id)) != expected:
            findings.differ(f"the secret of key {key_id} is {verdict}, not {expected}")


def made_by(writes: Iterable[Write]) -> dict[str, Row]:
    """Return the rows that the writes produce, starting from none."""
    rows: dict[str, Row] = {}
    for write in writes:
        before = rows.get(write.key_id, Row(""))
        if write.type == "ROTATED":
            rows[write.value] = before._replace(replaces=write.key_id, replaced_by="")
        rows[write.key_id] = before._replace(**_changes(write))
    return rows


def _changes(write: Write) -> dict[str, Any]:
    if write.type in ("CREATED", "UPDATED"):
        return {"name": write.value}
    if write.type in ("ACTIVATED", "DEACTIVATED"):
        return {"active": write.type == "ACTIVATED"}
    return {"revoked": True} if write.type == "REVOKED" else {"replaced_by": write.value}


def _event(write: Write) -> Event:
    return Event(write.revision, write.type, write.key_id, write.value)
