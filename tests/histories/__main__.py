"""Revocation as a measured history.

    python -m tests.histories
    python -m tests.histories --only stopped --revokes 500 --json

Each mode creates an installation, starts its server or servers, and revokes thousands of keys while other processes
verify them without pause. Every call is recorded with its start and end, and the checker compares the history with
docs/contract.md. The exit code is 1 if a promise is broken, or if a history covers too little. Databases are kept in
memory, so that disks do not affect the measurements.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.histories.checker import quantile
from tests.histories.history import Revoke, Verify
from tests.histories.modes import MODES, Run, run
from tests.histories.scene import Postgresql, memory

SECONDS_PER_LINE = 10
WIDTH = 160


def seconds(operations: Sequence[Revoke | Verify]) -> float:
    """Return the seconds from the start of the first operation to the end of the last."""
    return (max(each.returned for each in operations) - min(each.invoked for each in operations)) / 1e9


def milliseconds(values: Sequence[int]) -> dict[str, float]:
    """Return the median, the 99th percentile and the maximum of spans in nanoseconds."""
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(quantile(values, share) / 1e6, 3) for name, share in shares.items()}


def plain(done: Run) -> dict[str, Any]:
    """Return a run as plain data."""
    found, revokes, verifies = done.findings, done.history.revokes, done.history.verifies
    return {
        "mode": done.mode.name,
        "about": done.mode.about,
        "revokes": found.revokes,
        "revokes_per_second": round(found.revokes / seconds(revokes), 1),
        "revoke_ms": milliseconds([revoke.returned - revoke.invoked for revoke in revokes]),
        "answers": dict(found.answers),
        "verifies": found.verifies,
        "verifies_per_second": round(found.verifies / seconds(verifies), 1),
        "begun_after_revoke": dict(found.late),
        "of_these_valid": dict(found.stale),
        "demanding_begun_after_revoke": found.demanding,
        "of_these_demanding_valid": found.stale_demanding,
        "last_valid_begun_ms": {name: milliseconds(lag.last_valid) for name, lag in sorted(found.lags.items())},
        "first_denial_ms": {name: milliseconds(lag.first_denial) for name, lag in sorted(found.lags.items())},
        "not_asked_before_and_after": dict(found.unseen),
        "faults": dict(done.faults),
        "violations": found.violations,
        "problems": [*found.examples, *done.problems],
    }


def report(runs: Sequence[Run]) -> Table:
    """Return the table of the results, with one line per mode."""
    table = Table(
        "",
        "revokes",
        "verifies",
        "begun after Revoke returned:\nVALID at the server that revoked",
        "\nVALID at the other",
        "ms after Revoke returned, p50/p99/max\nlast VALID begun",
        "\nfirst denial returned",
        "failed",
        "wrong",
        title="Keys revoked while they were verified",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for done in runs:
        found, told = done.findings, plain(done)
        other = "B" in found.late
        table.add_row(
            done.mode.name,
            f"{found.revokes:,}",
            f"{found.verifies:,}",
            f"{found.stale['A']:,} of {found.late['A']:,}",
            f"{found.stale['B']:,} of {found.late['B']:,}" if other else "",
            *(
                " / ".join(f"{value:,.1f}" for value in told[what]["B"].values()) if other else ""
                for what in ("last_valid_begun_ms", "first_denial_ms")
            ),
            f"{found.failures:,}",
            f"{done.wrong:,}",
        )
    return table


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description="Revoke, verify, and compare.")
    names = [mode.name for mode in MODES]
    parser.add_argument("--only", action="append", choices=names, metavar="MODE", help=f"of {', '.join(names)}")
    parser.add_argument("--revokes", type=int, default=0, help="in each mode (default 10,000 or 1,000)")
    parser.add_argument("--json", action="store_true", help="print plain data")
    arguments = parser.parse_args()
    modes = [
        replace(mode, revokes=arguments.revokes or mode.revokes)
        for mode in MODES
        if mode.name in (arguments.only or names)
    ]
    runs = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and databases are stopped and removed
    with memory() as folder:
        postgresql = Postgresql(folder / "postgresql") if any(mode.dialect == "postgresql" for mode in modes) else None
        try:
            for mode in modes:

                def show(elapsed: float, revoked: int, name: str = mode.name) -> None:
                    text = f"{name}: {elapsed:4.0f} s, {revoked:,} revoked"
                    if sys.stderr.isatty():
                        print(f"\r{text}  ", end="", file=sys.stderr, flush=True)
                    elif round(elapsed) % SECONDS_PER_LINE == 0:
                        print(text, file=sys.stderr, flush=True)

                url = postgresql.new_database(mode.name) if postgresql and mode.dialect == "postgresql" else ""
                runs.append(run(mode, folder, url, postgresql, show))
                if sys.stderr.isatty():
                    print(file=sys.stderr)
        finally:
            if postgresql:
                postgresql.close()
    if arguments.json:
        print(json.dumps([plain(done) for done in runs], indent=2))
        return 1 if any(done.wrong for done in runs) else 0
    console = Console(width=WIDTH)
    console.print(report(runs))
    for done in runs:
        struck = ", ".join(f"{number} {what}" for what, number in done.faults.items())
        console.print(f"{done.mode.name}: {done.mode.about}" + (f"; {struck}" if struck else ""))
        for problem in (*done.findings.examples, *done.problems):
            console.print(f"problem: {problem}", style="red", markup=False)
    wrong = sum(done.wrong for done in runs)
    console.print(f"{wrong} problems", style="red" if wrong else "green")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
