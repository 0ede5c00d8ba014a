"""The report, for people and for programs."""

import re
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tests.siege.honest import ROLES
from tests.siege.outcome import PHASES, Outcome


def plain(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain data."""
    return {
        "attack": outcome.attack,
        "what": outcome.what,
        "held": not outcome.problems,
        "problems": outcome.problems,
        "calls": {
            role: {
                phase: {
                    "calls": len(outcome.calls.get(phase, {}).get(role, ())),
                    "failures": outcome.failures(phase, [role]).get(role, 0),
                    "p50_ms": _milliseconds(outcome.quantile(phase, role, 0.5)),
                    "p99_ms": _milliseconds(outcome.quantile(phase, role, 0.99)),
                }
                for phase in PHASES
            }
            for role in ROLES
        },
        "memory_mib": {name: round(size / 2**20, 1) for name, size in outcome.memory.items()},
        "sigterm_seconds": None if outcome.ended is None else round(outcome.ended, 2),
        "attacker": {"counts": outcome.counts, "core_share": round(outcome.busy, 2)},
        "honest_callers_late_p99_ms": _milliseconds(outcome.late),
    }


def table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Return the table for people: times in milliseconds, memory in MiB."""
    shown = Table(
        "attack",
        "Verify p50/p99\nbefore",
        "\nduring",
        "\nafter",
        "Revoke p99\nbefore/during/after",
        "failures\nbefore/during/after",
        "memory\nstart/peak/end/again",
        "SIGTERM\nseconds",
        "attacker\nof a core",
        "held",
        title=title,
        title_justify="left",
    )
    for column in shown.columns[1:-1]:
        column.justify = "right"
    for outcome in outcomes:
        failures = [sum(outcome.failures(phase).values()) for phase in PHASES]
        shown.add_row(
            outcome.attack,
            *("/".join(_short(outcome.quantile(phase, "Verify", share)) for share in (0.5, 0.99)) for phase in PHASES),
            "/".join(_short(outcome.quantile(phase, "Revoke", 0.99)) for phase in PHASES),
            "/".join(map(str, failures)),
            "/".join(_memory(outcome)),
            "killed" if outcome.ended is None else f"{outcome.ended:.1f}",
            f"{outcome.busy:.0%}",
            "no" if outcome.problems else "yes",
            style="red" if outcome.problems else "",
        )
    return shown


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table as docs/reliability.md shows it."""
    lines = [
        "| attack | Verify p99 before, during, after, ms | Revoke p99 during, ms | failures before, during, after "
        "| memory start, peak, end (and again), MiB | SIGTERM, s | held |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        failures = ", ".join(str(sum(outcome.failures(phase).values())) for phase in PHASES)
        verify = ", ".join(_short(outcome.quantile(phase, "Verify", 0.99)) for phase in PHASES)
        memory = ", ".join(_memory(outcome))
        ended = "killed" if outcome.ended is None else f"{outcome.ended:.1f}"
        held = f"no: {_told(outcome.problems)}" if outcome.problems else "yes"
        revoke = _short(outcome.quantile("during", "Revoke", 0.99))
        lines.append(f"| `{outcome.attack}` | {verify} | {revoke} | {failures} | {memory} | {ended} | {held} |")
    return "\n".join(lines)


def _told(problems: Sequence[str]) -> str:
    """Return problems in short form, since the table has the figures."""
    return "; ".join(re.split(r":|,| \(| is ", problem)[0] for problem in problems)


def _memory(outcome: Outcome) -> list[str]:
    names = ("start", "peak", "end", *(["again"] if "again" in outcome.memory else []))
    return [str(outcome.memory.get(name, 0) >> 20) for name in names]


def _milliseconds(value: float | None) -> float | None:
    return None if value is None else round(value * 1e3, 2)


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1e3:,.0f}" if value >= 0.01 else f"{value * 1e3:.1f}"
