"""Kill servers, workers and schedulers: no acknowledged write may be lost or made twice, and no rotation either.

    python -m tests.kills
    python -m tests.kills --part writes --only postgresql --kills 60 --writes 5000 --seed 7 --json

``writes``: clients create, update, activate, rotate and revoke keys, and retry calls without a response. Meanwhile the
server (with one process or two workers), a worker or the acting scheduler is killed at any moment. At the end each
acknowledged write must be in the log and in the database, once (``checker``), and ``audit verify`` must succeed.
``rotations``: the acting scheduler, its worker or its server is killed while rotations are due
(``tests.rotations.kills``).
The exit code is 1 if anything is wrong.
"""

import argparse
import json
import secrets
import signal
import sys
import time
from contextlib import ExitStack

from rich.console import Console

from tests.histories.scene import Postgresql, memory
from tests.kills import report, run
from tests.rotations import kills as rotations
from tests.siege.ground import versions

DIALECTS = ("sqlite", "postgresql")
PARTS = ("writes", "rotations")
SECONDS_PER_LINE = 10
SHORT = {"kills": 2, "writes": 200, "rotation_kills": 2, "keys": 20}

_EPILOG = (
    "On two cores a kill takes one to three seconds: with the defaults an hour and a half or two, of which the "
    "rotations are a quarter."
)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills", description=__doc__.partition("\n")[0], epilog=_EPILOG
    )
    parser.add_argument("--part", choices=PARTS, help="this part alone")
    parser.add_argument("--only", choices=DIALECTS, help="on this database alone")
    parser.add_argument("--kills", type=int, default=500, help="of each kind, while keys are written (default 500)")
    parser.add_argument("--writes", type=int, default=50_000, help="at least so many of them (default 50,000)")
    parser.add_argument("--rotation-kills", type=int, default=200, help="while rotations are due (default 200)")
    parser.add_argument("--keys", type=int, default=1_000, help="how many are due (default 1,000)")
    parser.add_argument("--seed", type=int, default=None, help="what chance begins with (default: any)")
    parser.add_argument("--short", action="store_true", help="two kills of each kind: two minutes")
    parser.add_argument("--json", action="store_true", help="print plain data")
    arguments = parser.parse_args()
    if arguments.short:
        vars(arguments).update(SHORT)
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    began = told = time.monotonic()

    def show(dialect: str, killed: int, written: int | None = None) -> None:
        nonlocal told
        if time.monotonic() - told >= SECONDS_PER_LINE:
            told = time.monotonic()
            writes = "" if written is None else f", {written:,} writes"
            print(f"{dialect}: {told - began:4.0f} s, {killed} killed{writes}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and databases are stopped and removed
    written: list[run.Run] = []
    rotated: list[rotations.Run] = []
    with memory() as folder, ExitStack() as open_:
        for dialect in [arguments.only] if arguments.only else DIALECTS:
            postgresql = Postgresql(folder / "postgresql") if dialect == "postgresql" else None
            if postgresql:
                open_.callback(postgresql.close)
            urls = {part: postgresql.new_database(part) if postgresql else "" for part in PARTS}
            if arguments.part != "rotations":
                written.append(run.run(dialect, folder, urls["writes"], arguments.kills, arguments.writes, seed, show))
                if written[-1].interrupted:
                    break
            if arguments.part != "writes":
                rotated.append(
                    rotations.run(
                        dialect, folder, urls["rotations"], arguments.rotation_kills, arguments.keys, seed, show
                    )
                )
    made_of = versions(sys.executable)
    wrong = sum(done.wrong for done in written) + sum(done.wrong for done in rotated)
    if arguments.json:
        told_of = {"writes": [report.plain(done) for done in written], "rotations": [*map(rotations.plain, rotated)]}
        print(json.dumps({"versions": made_of, **told_of}, indent=2))
        return 1 if wrong else 0
    console = Console(width=160)
    if written:
        report.show(written, console)
    if rotated:
        rotations.show(rotated, console)
    console.print(", ".join(f"{name} {version}" for name, version in made_of.items()), highlight=False)
    console.print(f"{wrong} problems", style="red" if wrong else "green")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
