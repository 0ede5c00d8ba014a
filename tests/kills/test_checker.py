"""The checker of writes finds what was lost or doubled, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.kills.checker import SHOWN, Findings, check
from tests.kills.history import Event, History, Row, Write

GOOD = History(
    writes=[
        Write("CREATED", "a", 1, "first", "r1"),
        Write("UPDATED", "a", 2, "second"),
        Write("DEACTIVATED", "a", 3),
        Write("ACTIVATED", "a", 4),
        Write("ROTATED", "a", 6, "b", "r2"),
        Write("REVOKED", "b", 7),
        Write("CREATED", "due", 8, "due", "r3"),
    ],
    scheduled=frozenset({"due"}),
    events=[
        Event(1, "CREATED", "a", "first"),
        Event(2, "UPDATED", "a", "second"),
        Event(3, "DEACTIVATED", "a"),
        Event(4, "ACTIVATED", "a"),
        Event(5, "CREATED", "b", "second"),
        Event(6, "ROTATED", "a", "b"),
        Event(7, "REVOKED", "b"),
        Event(8, "CREATED", "due", "due"),
        Event(9, "ROTATION_DUE", "due"),
    ],
    rows={
        "a": Row("second", replaced_by="b"),
        "b": Row("second", revoked=True, replaces="a"),
        "due": Row("due"),
    },
    requests={"r1": "a", "r2": "b", "r3": "due"},
    expected={"a": "SUPERSEDED", "b": "REVOKED", "due": "VALID"},
    verdicts={"a": "SUPERSEDED", "b": "REVOKED", "due": "VALID"},
)
"""A history of a key that was changed in every way, its successor, and a key whose rotation was announced."""

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


def said(part: str, **values: Any) -> Doctor:
    """Return a function that sets values of a part that is a mapping; None removes one."""
    return lambda history: replace(
        history,
        **{part: {name: value for name, value in {**getattr(history, part), **values}.items() if value is not None}},
    )


BROKEN: dict[str, tuple[Doctor, tuple[int, int, int], str]] = {
    "an update that is not in the log": (less("events", 1), (1, 0, 0), "UPDATED"),
    "an update that is in the log, and overwritten in the row": (
        said("rows", a=Row("first", replaced_by="b")),
        (0, 0, 1),
        "key a",
    ),
    "an update that the log has with another value": (changed("events", 1, value="other"), (1, 1, 0), "other"),
    "an update that was made twice": (more("events", Event(10, "UPDATED", "a", "second")), (0, 1, 0), "UPDATED"),
    "two writes that were acknowledged by one event": (
        more("writes", Write("REVOKED", "b", 7)),
        (1, 0, 1),
        "for two writes",
    ),
    "a key that is gone": (said("rows", due=None), (1, 0, 0), "key due was made, and is gone"),
    "a Create that made a second key": (
        lambda history: said("rows", twin=Row("due"))(more("events", Event(10, "CREATED", "twin", "due"))(history)),
        (0, 2, 0),
        "twin",
    ),
    "a Create whose request id made two keys": (
        lambda history: said("rows", twin=Row("due"))(
            more("events", Event(10, "CREATED", "twin", "due"))(
                more("writes", Write("CREATED", "twin", 10, "due", "r3"))(history)
            )
        ),
        (0, 1, 0),
        "request r3 made due and twin",
    ),
    "a request id that was forgotten": (said("requests", r2=None), (1, 0, 0), "request r2"),
    "a request id that nobody used": (said("requests", r9="a"), (0, 1, 0), "request r9"),
    "a rotation whose successor is another": (said("rows", a=Row("second", replaced_by="c")), (0, 0, 1), "key a"),
    "a successor that was never made": (less("events", 4), (1, 0, 0), "that b was made"),
    "a successor that was made twice": (more("events", Event(10, "CREATED", "b", "second")), (0, 1, 0), "CREATED"),
    "a revocation that was undone": (
        said("rows", b=Row("second", replaces="a")),
        (0, 0, 1),
        "its revocation was undone",
    ),
    "a switch that was undone": (
        said("rows", due=Row("due", active=False)),
        (0, 0, 1),
        "key due",
    ),
    "writes of one key the other way round": (
        lambda history: replace(history, writes=[*history.writes[:2], *history.writes[3:1:-1], *history.writes[4:]]),
        (0, 0, 3),
        "before an earlier write",
    ),
    "an announcement that was lost": (less("events", 8), (1, 0, 0), "not announced"),
    "an announcement that was made twice": (more("events", Event(10, "ROTATION_DUE", "due")), (0, 1, 0), "2 times"),
    "an announcement of what is not due": (more("events", Event(10, "ROTATION_DUE", "b")), (0, 1, 0), "key b"),
    "a revoked key that is accepted": (said("verdicts", b="VALID"), (0, 0, 1), "VALID, not REVOKED"),
    "a secret that nobody knows": (said("verdicts", due=None), (0, 0, 1), "None, not VALID"),
}


def test_good() -> None:
    """A history without loss or duplication has no findings."""
    assert check(GOOD) == Findings()


@pytest.mark.parametrize("what", BROKEN)
def test_broken(what: str) -> None:
    """Each kind of loss or duplication is found, counted as its kind, and named."""
    doctor, counts, text = BROKEN[what]
    findings = check(doctor(GOOD))
    assert (findings.lost, findings.doubled, findings.differing) == counts, findings.examples
    assert any(text in example for example in findings.examples)


def test_many() -> None:
    """All violations are counted, and the first ones are reported."""
    findings = check(replace(GOOD, events=[*GOOD.events, *(Event(number, "UPDATED", "a") for number in range(10, 60))]))
    assert findings.doubled == findings.violations == 50
    assert len(findings.examples) == SHOWN
