"""The rules of "held": each violation is noticed."""

from dataclasses import replace

import pytest

from tests.siege.attacks import ATTACKS, BY_NAME
from tests.siege.honest import ROLES, Call
from tests.siege.outcome import PHASES, Outcome, judge
from tests.siege.report import markdown, plain, table
from tests.siege.scene import BEFORE, FLOOD, Held

MIB = 1 << 20


def outcome(phase: str = "", role: str = "", took: float = 0.001, failure: str = "", **fields: object) -> Outcome:
    """Return an outcome without problems, except for what the arguments set."""
    calls = {
        each: {of: [Call(of, 0.0, 0.001, "")] if of in ("Verify", "Revoke") else [] for of in ROLES} for each in PHASES
    }
    if role:
        calls[phase][role] = [Call(role, 0.0, took, failure)]
    made = Outcome("an attack", "What it does.", calls, {"start": 90 * MIB, "peak": 100 * MIB, "end": 95 * MIB}, 0.5)
    return replace(made, problems=[], **fields)  # type: ignore[arg-type]


def grown(**more: int) -> dict[str, int]:
    """Return memory sizes in bytes that end more than a fifth above the start. ``more`` is in MiB."""
    sizes = {"start": 90, "peak": 110, "end": 110, **more}
    return {name: size * MIB for name, size in sizes.items()}


@pytest.mark.parametrize("held", [Held(), Held(verify=BEFORE), Held(verify=FLOOD), Held(revoke=0.25)])
def test_nothing_is_wrong_where_all_went_well(held: Held) -> None:
    """A server without any failure or delay of honest calls has held."""
    done = outcome()
    judge(held, done, 0.0)
    assert done.problems == []


@pytest.mark.parametrize(
    ("held", "done", "told"),
    [
        (Held(), outcome("before", "Get", failure="x"), "failed before: 1 Get (x)"),
        (Held(), outcome("during", "heartbeat", failure="x"), "failed during: 1 heartbeat (x)"),
        (Held(), outcome("after", "List", failure="x"), "failed after: 1 List (x)"),
        (Held(excused=frozenset({"Revoke"})), outcome("after", "Revoke", failure="x"), "failed after: 1 Revoke (x)"),
        (Held(verify=BEFORE), outcome("during", "Verify", 0.03), "Verify's p99 is 30 ms, more than 3 times"),
        (Held(verify=FLOOD), outcome("during", "Verify", 0.04), "Verify's p99 is 40 ms, more than 3 times"),
        (Held(revoke=0.25), outcome("during", "Revoke", 0.3), "Revoke's p99 is 300 ms"),
        (Held(slowest={"Verify": 3}), outcome("during", "Verify", 3.5, "x"), "an answer of Verify took 3.5 s"),
        (Held(), outcome(memory={"start": 90 * MIB, "peak": 600 * MIB, "end": 95 * MIB}), "memory reached 600 MiB"),
        (Held(), outcome(memory={"start": 90 * MIB, "peak": 110 * MIB, "end": 110 * MIB}), "memory ended at 110 MiB"),
        (Held(), outcome(memory=grown(again=122)), "memory ended at 110 MiB"),
        (Held(), outcome(ended=None), "SIGTERM did not end the server"),
        (Held(), outcome(ended=6.5), "SIGTERM did not end the server"),
    ],
)
def test_what_was_not_held_is_told(held: Held, done: Outcome, told: str) -> None:
    """A failed or slow call, memory that is not released, and a server that does not end are each a problem."""
    judge(held, done, 0.01)
    assert any(problem.startswith(told) for problem in done.problems), done.problems
    assert not plain(done)["held"]
    assert table([done], "").row_count == 1
    assert "no: " in markdown([done])


def test_a_flood_is_compared_with_as_many_calls() -> None:
    """During a flood, Verify may be as slow as with a well-behaved client that calls as fast as it can."""
    done = outcome("during", "Verify", 0.04)
    judge(Held(verify=FLOOD), done, 0.014)
    assert done.problems == []


def test_memory_that_a_second_attack_does_not_add_to() -> None:
    """Memory that an attack leaves behind, and a second attack does not add to, is no leak, but is shown."""
    done = outcome(memory=grown(again=115))
    judge(Held(), done, 0.0)
    assert done.problems == []
    assert "90, 110, 110, 115" in markdown([done])


def test_calls_that_an_attack_makes_impossible_may_fail_beside_it() -> None:
    """Calls that write may fail while another process holds the database's write lock."""
    done = outcome("during", "Revoke", failure="UNAVAILABLE")
    judge(BY_NAME["write-lock"].held, done, 0.0)
    assert done.problems == []


def test_every_attack_has_a_name_and_says_what_it_does() -> None:
    """Attacks have distinct names and a description, and a dozen of them are the short form."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert all(attack.what.endswith((".", ")")) for attack in ATTACKS)
    assert sum(attack.short for attack in ATTACKS) == 12
