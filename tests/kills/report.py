"""The report of a run of writes, for people and for programs."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.kills.run import Run
from tests.kills.victims import KINDS


def plain(done: Run) -> dict[str, Any]:
    """Return a run as plain data."""
    return {
        "database": done.dialect,
        "version": done.version,
        "seed": done.seed,
        "kills": {kind: done.kills[kind] for kind in KINDS},
        "writes": len(done.history.writes),
        "events": dict(Counter(event.type for event in done.history.events)),
        "interrupted": done.counts["interrupted"],
        "had_been_made": done.counts["had been made"],
        "verified_meanwhile": done.counts["verified"],
        "secrets_verified": len(done.history.verdicts),
        "lost": done.findings.lost,
        "doubled": done.findings.doubled,
        "differing": done.findings.differing,
        "audit": done.audit,
        "seconds": round(done.seconds, 1),
        "problems": [*done.findings.examples, *done.problems],
    }


def table(runs: Sequence[Run]) -> Table:
    """Return the table of the results, with one line per database."""
    shown = Table(
        "",
        "killed: server",
        "worker",
        "scheduler",
        "acknowledged\nwrites",
        "calls\ninterrupted",
        "known to have\nbeen made",
        "rotations\nannounced",
        "secrets\nverified",
        "lost",
        "doubled",
        "differing",
        "s",
        title="Servers, workers and schedulers killed under writers",
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for done in runs:
        told = plain(done)
        numbers = (
            *told["kills"].values(), told["writes"], told["interrupted"], told["had_been_made"],
            told["events"].get("ROTATION_DUE", 0), told["secrets_verified"] + told["verified_meanwhile"],
            told["lost"], told["doubled"], told["differing"], round(done.seconds),
        )  # fmt: skip
        shown.add_row(done.version, *(f"{number:,}" for number in numbers))
    return shown


def show(runs: Sequence[Run], console: Console) -> None:
    """Print the table, and the results of the audits."""
    console.print(table(runs))
    for done in runs:
        console.print(f"{done.dialect}: audit {done.audit}; seed {done.seed}", markup=False, highlight=False)
        for problem in (*done.findings.examples, *done.problems):
            console.print(f"problem: {problem}", style="red", markup=False)
