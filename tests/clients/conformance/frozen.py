"""Freeze verifiers, and delay and duplicate their connections, again and again, on a machine that is busy.

    python -m tests.clients.conformance.frozen --rounds 200
    python -m tests.clients.conformance.frozen --only java --rounds 20 --scenario "delayed both ways"

In each round, what a verifier needs to hear comes late while a key that it remembers is revoked. It must not accept
that key for longer than its bound allows. Ends with 1 if one did.
"""

import argparse
import functools
import itertools
import multiprocessing
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.clients.conformance.programs import PROGRAMS, Program
from tests.clients.conformance.scene import Scene
from tests.clients.conformance.test_late_messages import PHASES, WAYS, delay, duplicate, freeze
from tests.e2e.service import Service

TOGETHER = 12
"""Verifiers that run at a time."""

SCENARIOS: dict[str, Callable[[Scene], None]] = {
    **{f"frozen {phase.__name__.replace('_', ' ')}": functools.partial(freeze, phase=phase) for phase in PHASES},
    **{f"delayed {way}": functools.partial(delay, way=way) for way in WAYS},
    "duplicated": duplicate,
}


def burn() -> None:
    """Keep a processor busy."""
    while True:
        pass


def rounds(service: Service, name: str, number: int, scenarios: list[str], folder: Path) -> Counter[str]:
    """Let verifiers of a name go through each scenario this often. Count the right outcomes and the failures."""
    found: Counter[str] = Counter()
    work = itertools.product(range(number), scenarios)
    lock = threading.Lock()

    def one(place: int) -> None:
        with Program(name, folder / f"{name}-{place}.stderr") as program:
            while True:
                with lock:
                    _, scenario = next(work, (None, None))
                if scenario is None:
                    return
                try:
                    scene = Scene(program, service)
                    SCENARIOS[scenario](scene)
                    scene.close()
                    told = "right"
                except AssertionError as failure:
                    told = f"{scenario}: {str(failure).splitlines()[0]}"
                with lock:
                    found[told] += 1

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(one, range(TOGETHER)))
    return found


def main() -> int:
    """Run the scenarios, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="for each verifier and scenario (default 200)")
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="this one; may be repeated")
    parser.add_argument("--only", action="append", choices=list(PROGRAMS), help="this verifier; may be repeated")
    parser.add_argument("--burners", type=int, default=2, help="processes that keep a processor busy (default 2)")
    options = parser.parse_args()
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(options.burners)]
    for burner in burners:
        burner.start()
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        service = Service(Path(temporary) / "data").init()
        service.start()
        try:
            for name in options.only or PROGRAMS:
                found = rounds(service, name, options.rounds, options.scenario or list(SCENARIOS), Path(temporary))
                wrong += found.total() - found["right"]
                print(f"{name}: {found['right']} of {found.total()} right", flush=True)
                for told, times in found.items():
                    if told != "right":
                        print(f"  {times} times: {told}", flush=True)
        finally:
            service.close()
            for burner in burners:
                burner.kill()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
