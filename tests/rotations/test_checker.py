"""The checker of rotations finds what breaks a promise, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.rotations.checker import SHOWN, Findings, check
from tests.rotations.history import OK, UNKNOWN, Arrival, Claim, Event, History, KeyRow, Row

DUE_TIME = {"due_time": "2030-01-08T00:00:00Z"}
LATER = {"due_time": "2030-01-15T00:00:00Z"}


def arrival(webhook_id: str, kind: str, key_id: str, digest: str = "", **fields: Any) -> Arrival:
    """Return a webhook that arrived, signed, and was accepted."""
    return Arrival(webhook_id, kind, key_id, digest or f"body of {webhook_id}", True, 204)._replace(**fields)


GOOD = History(
    arrivals=[
        arrival("msg_2", "key.rotation_due", "old", status=500),
        arrival("msg_2", "key.rotation_due", "old"),
        arrival("msg_5", "key.rotated", "old"),
        arrival("msg_5", "key.rotated", "old"),
        arrival("msg_6", "key.rotation_due", "new"),
        arrival("msg_8", "key.rotation_due", "lost"),
        arrival("msg_11", "key.rotated", "lost"),
        arrival("msg_12", "key.revoked", "lost"),
        arrival("msg_13", "key.rotation_due", "unshown"),
    ],
    claims=[
        Claim("msg_2", OK, "new"),
        Claim("msg_2", "KEY_SUPERSEDED"),
        Claim("msg_6", UNKNOWN),
        Claim("msg_8", UNKNOWN),
        Claim("msg_8", "KEY_REVOKED"),
    ],
    events=[
        Event(1, "CREATED", "old", {}),
        Event(2, "ROTATION_DUE", "old", DUE_TIME),
        Event(3, "ROTATION_CLAIMED", "old", {}),
        Event(4, "CREATED", "new", {}),
        Event(5, "ROTATED", "old", {}),
        Event(6, "ROTATION_DUE", "new", LATER),
        Event(7, "CREATED", "lost", {}),
        Event(8, "ROTATION_DUE", "lost", DUE_TIME),
        Event(9, "ROTATION_CLAIMED", "lost", {}),
        Event(10, "CREATED", "unshown", {}),
        Event(11, "ROTATED", "lost", {}),
        Event(12, "REVOKED", "lost", {}),
        Event(13, "ROTATION_DUE", "unshown", DUE_TIME),
        Event(14, "CREATED", "rotated by hand", {}),
        Event(15, "ROTATION_DUE", "rotated by hand", DUE_TIME),
        Event(16, "CREATED", "made by hand", {}),
        Event(17, "ROTATED", "rotated by hand", {}),
        Event(18, "ROTATION_DUE", "made by hand", DUE_TIME),
    ],
    rows=[
        Row(2, "msg_2", "key.rotation_due", "old", "DELIVERED"),
        Row(5, "msg_5", "key.rotated", "old", "DELIVERED"),
        Row(6, "msg_6", "key.rotation_due", "new", "DELIVERED"),
        Row(8, "msg_8", "key.rotation_due", "lost", "OUTDATED"),
        Row(11, "msg_11", "key.rotated", "lost", "DELIVERED"),
        Row(12, "msg_12", "key.revoked", "lost", "DELIVERED"),
        Row(13, "msg_13", "key.rotation_due", "unshown", "DELIVERED"),
        Row(15, "msg_15", "key.rotation_due", "rotated by hand", "OUTDATED"),
        Row(17, "msg_17", "key.rotated", "rotated by hand", "DELIVERED"),
        Row(18, "msg_18", "key.rotation_due", "made by hand", "DELIVERED"),
    ],
    keys=[
        KeyRow("old", "", "new", revoked=False, ended=True, due_revision=2),
        KeyRow("new", "old", "", revoked=False, ended=False, due_revision=6),
        KeyRow("lost", "", "unshown", revoked=True, ended=True, due_revision=8),
        KeyRow("unshown", "lost", "", revoked=False, ended=False, due_revision=13),
        KeyRow("rotated by hand", "", "made by hand", revoked=False, ended=False, due_revision=15),
        KeyRow("made by hand", "rotated by hand", "", revoked=False, ended=False, due_revision=18),
    ],
    verdicts={"old": "SUPERSEDED", "new": "VALID", "lost": "REVOKED", "rotated by hand": "VALID"},
)
GOOD = replace(
    GOOD,
    arrivals=[
        *GOOD.arrivals,
        arrival("msg_17", "key.rotated", "rotated by hand"),
        arrival("msg_18", "key.rotation_due", "made by hand"),
    ],
)
"""A history of keys that were claimed, with the response received or lost, or rotated by hand, and of their webhooks,
some of which were sent twice."""

Doctor = Callable[[History], History]


def more(part: str, *items: Any) -> Doctor:
    """Return a function that adds items to a part of a history."""
    return lambda history: replace(history, **{part: [*getattr(history, part), *items]})


def less(part: str, number: int) -> Doctor:
    """Return a function that removes an item, by its index, from a part of a history."""
    return lambda history: replace(
        history, **{part: [item for at, item in enumerate(getattr(history, part)) if at != number]}
    )


def changed(part: str, number: int, **fields: Any) -> Doctor:
    """Return a function that changes fields of an item, by its index, in a part of a history."""
    return lambda history: replace(
        history,
        **{part: [item._replace(**fields) if at == number else item for at, item in enumerate(getattr(history, part))]},
    )


def said(**verdicts: str) -> Doctor:
    """Return a function that changes verdicts."""
    return lambda history: replace(history, verdicts={**history.verdicts, **verdicts})


BROKEN: dict[str, tuple[Doctor, str]] = {
    "announced twice": (
        more("events", Event(19, "ROTATION_DUE", "new", LATER)),
        "key new: one rotation was announced 2 times",
    ),
    "never announced": (changed("keys", 1, due_revision=0), "key new: its rotation was due, and not announced"),
    "an announcement without an event": (
        changed("keys", 1, due_revision=2),
        "key new: its row names an announcement that is not in the log",
    ),
    "no delivery": (less("rows", 1), "event 5 (ROTATED) has 0 deliveries"),
    "two deliveries": (
        more("rows", Row(5, "msg_x", "key.rotated", "old", "DELIVERED")),
        "event 5 (ROTATED) has 2 deliveries",
    ),
    "a delivery of nothing": (
        more("rows", Row(4, "msg_x", "key.rotated", "new", "DELIVERED")),
        "delivery msg_x is of no such event",
    ),
    "a delivery of another key": (changed("rows", 1, key_id="new"), "delivery msg_5 is of no such event"),
    "an id for two events": (changed("rows", 1, webhook_id="msg_2"), "msg_2 is the id of 2 deliveries"),
    "never taken": (
        changed("arrivals", 1, status=500),
        "msg_2 (key.rotation_due) counts as delivered, and no receiver took it",
    ),
    "never sent": (less("arrivals", 4), "msg_6 (key.rotation_due) counts as delivered, and no receiver took it"),
    "left over": (changed("rows", 2, state="PENDING"), "msg_6 (key.rotation_due) is PENDING"),
    "given up": (changed("rows", 1, state="FAILED"), "msg_5 (key.rotated) is FAILED"),
    "news that cannot be outdated": (changed("rows", 5, state="OUTDATED"), "msg_12 (key.revoked) is OUTDATED"),
    "outdated by nothing": (
        changed("rows", 2, state="OUTDATED"),
        "msg_6 counts as outdated, and key new was not rotated",
    ),
    "not signed": (changed("arrivals", 4, signed=False), "msg_6 came without a signature that fits"),
    "sent without a delivery": (
        more("arrivals", arrival("msg_x", "key.rotated", "old")),
        "msg_x came, and is no such delivery's",
    ),
    "another id when repeated": (
        more("arrivals", arrival("msg_x", "key.rotated", "old", "body of msg_5")),
        "one message came as msg_5, msg_x",
    ),
    "another message when repeated": (
        more("arrivals", arrival("msg_5", "key.rotated", "old", "changed")),
        "msg_5 came with different messages",
    ),
    "two claims that were answered": (
        more("claims", Claim("msg_2", OK, "new")),
        "key old: 2 claims were answered OK",
    ),
    "two claims in the log": (
        more("events", Event(19, "ROTATION_CLAIMED", "old", {})),
        "key old was claimed 2 times",
    ),
    "a claim that is not in the log": (
        less("events", 2),
        "key old: a claim was answered OK, and is not in the log",
    ),
    "a claim by nobody": (
        changed("claims", 3, outcome="KEY_REVOKED"),
        "key lost was claimed, and nobody can have done that",
    ),
    "a token refused before it was used": (
        changed("claims", 2, outcome="KEY_SUPERSEDED"),
        "key new: a claim was refused that nothing had come before",
    ),
    "a token refused for no reason": (
        changed("claims", 1, outcome="CLAIM_TOKEN_INVALID"),
        "the claim of msg_2 ended with CLAIM_TOKEN_INVALID",
    ),
    "another successor than was shown": (
        changed("claims", 0, successor="unshown"),
        "key old: the successor that was shown is not the one that it has",
    ),
    "two successors": (
        more("keys", KeyRow("second", "old", "", revoked=True, ended=True, due_revision=0)),
        "key old has 2 successors",
    ),
    "a successor that is not there": (less("keys", 3), "the successor of key lost does not exist"),
    "a successor that is not known": (changed("keys", 4, replaced_by=""), "key rotated by hand does not know"),
    "claimed and not rotated": (less("events", 4), "key old was claimed and not rotated"),
    "rotated twice": (more("events", Event(19, "ROTATED", "old", {})), "key old was rotated 2 times and has 1"),
    "a secret that is refused": (said(new="NOT_FOUND"), "the secret of key new is NOT_FOUND, not VALID"),
    "a secret that outlives its grace": (said(old="VALID"), "the secret of key old is VALID, not SUPERSEDED"),
    "a secret that outlives its revocation": (said(lost="SUPERSEDED"), "the secret of key lost is SUPERSEDED, not"),
    "a secret whose key is gone": (said(gone="VALID"), "key gone was shown, and is gone"),
}


def test_kept() -> None:
    """Repetitions, lost responses, late claims and manual rotations break no promise."""
    assert check(GOOD) == Findings()


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    """Each kind of violation in a history is found, and named."""
    doctor, text = BROKEN[name]
    findings = check(doctor(GOOD))
    assert findings.violations >= 1
    assert any(example.startswith(text) for example in findings.examples), findings.examples


def test_all_are_counted() -> None:
    """All violations are counted, and the first ones are reported."""
    events = [Event(100 + number, "ROTATION_DUE", f"key {number % 50}", DUE_TIME) for number in range(100)]
    findings = check(History(events=events))
    assert findings.violations == 150
    assert len(findings.examples) == SHOWN
