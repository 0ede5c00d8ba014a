"""Attacks on a real server, with honest callers at the same time.

    python -m tests.siege
    python -m tests.siege --only headers-16 --only rapid-reset --database postgresql --workers 2

Each attack gets a server of its own. Honest callers call it before, during and after the attack. Then the attack runs
again, and SIGTERM comes in the middle of it. docs/reliability.md says what is attacked and what "held" means. The exit
code is 1 if anything was not held. Only the server's commands, flags and RPCs are used, so an older server can be
attacked as well: ``--server-python``.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.histories.scene import Postgresql, memory
from tests.siege.attacks import ATTACKS, YARDSTICK
from tests.siege.ground import NOISE_SHORT, Ground, Settings, versions
from tests.siege.honest import Crew
from tests.siege.outcome import Outcome
from tests.siege.report import markdown, plain, table
from tests.siege.run import besiege
from tests.siege.scene import FLOOD, Attack

WIDTH = 200


def run(attacks: Sequence[Attack], settings: Settings, folder: Path) -> list[Outcome]:
    """Run attacks one after another. The first flood is preceded by the yardstick that floods are compared with."""
    postgresql = Postgresql(folder / "postgresql") if settings.database == "postgresql" else None
    crew, ground = Crew(), Ground(folder, settings, postgresql)
    outcomes = []
    yardstick: float | None = None
    try:
        for attack in attacks:
            if attack.held.verify == FLOOD and yardstick is None:
                measured = besiege(YARDSTICK, settings, crew, ground)
                _tell(measured)
                yardstick = measured.quantile("during", "Verify", 0.99) or 0.0
                outcomes.append(measured)
            outcomes.append(besiege(attack, settings, crew, ground, yardstick or 0.0))
            _tell(outcomes[-1])
    finally:
        crew.close()
        if postgresql:
            postgresql.close()
    return outcomes


def _tell(outcome: Outcome) -> None:
    verdict = "; ".join(outcome.problems) or "held"
    counts = ", ".join(f"{number:,} {what}" for what, number in sorted(outcome.counts.items()))
    print(f"{time.strftime('%H:%M:%S')} {outcome.attack}: {verdict}\n         attacker: {counts}", file=sys.stderr)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.siege", description="Attack a server, and see who suffers.")
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("--list", action="store_true", help="say what attacks there are")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="one attack; can be repeated")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long an attack lasts (default 10)")
    parser.add_argument("--short", action="store_true", help="the most telling dozen, 2.2 s each")
    parser.add_argument("--full", action="store_true", help="more keys, and locks that are held longer")
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/reliability.md")
    parser.add_argument(
        "--server-python", default=sys.executable, metavar="PATH", help="the interpreter whose server is attacked"
    )
    arguments = parser.parse_args()
    if arguments.list:
        for attack in ATTACKS:
            print(f"{attack.name:22} {attack.what}")
        return 0
    settings = Settings(
        arguments.seconds, min(5.0, arguments.seconds / 2), 3.0, arguments.database, arguments.workers,
        arguments.server_python, arguments.full,
    )  # fmt: skip
    chosen = [attack for attack in ATTACKS if attack.name in (arguments.only or names)]
    if arguments.short:
        settings = Settings(
            2.2, 0.8, 0.3, arguments.database, arguments.workers, arguments.server_python, noise=NOISE_SHORT
        )
        chosen = [attack for attack in chosen if attack.short or arguments.only]
    chosen = [attack for attack in chosen if attack.database in ("", settings.database)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and databases are stopped and removed
    with memory() as folder:
        outcomes = run(chosen, settings, folder)
    made_of = ", ".join(f"{name} {version}" for name, version in versions(settings.python).items())
    title = f"{settings.database}, {settings.workers} worker{'s' * (settings.workers > 1)}; {made_of}"
    if arguments.json:
        print(json.dumps({"server": title, "attacks": [plain(each) for each in outcomes]}, indent=2))
    elif arguments.markdown:
        print(f"{title}\n\n{markdown(outcomes)}")
    else:
        console = Console(width=WIDTH)
        console.print(table(outcomes, title))
        for outcome in outcomes:
            for problem in outcome.problems:
                console.print(f"{outcome.attack}: {problem}", style="red", markup=False, highlight=False)
        held = sum(not outcome.problems for outcome in outcomes)
        console.print(f"{held} of {len(outcomes)} held")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
