"""Freeze verifiers again and again, on a machine that is busy.

    python -m tests.clients.conformance.frozen --rounds 200
    python -m tests.clients.conformance.frozen --only java --rounds 20

Each round opens a verifier, has its process stand still while a key that it remembers is revoked, and demands that it
accepts that key no more from the moment at which it goes on. Ends with 1 if one did.
"""

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.clients.conformance.programs import PROGRAMS, Program
from tests.clients.conformance.scene import Scene
from tests.clients.conformance.test_late_messages import PHASES, freeze
from tests.e2e.service import Service

TOGETHER = 12
"""Verifiers that run at a time."""


def burn() -> None:
    """Keep a processor busy."""
    while True:
        pass


def rounds(service: Service, name: str, number: int, folder: Path) -> Counter[str]:
    """Freeze verifiers of a name this often in each phase. Count the right outcomes and the failures."""
    found: Counter[str] = Counter()
    work = itertools.product(range(number), PHASES)
    lock = threading.Lock()

    def one(place: int) -> None:
        with Program(name, folder / f"{name}-{place}.stderr") as program:
            while True:
                with lock:
                    _, phase = next(work, (None, None))
                if phase is None:
                    return
                try:
                    scene = Scene(program, service)
                    freeze(scene, phase)
                    scene.close()
                    told = "right"
                except AssertionError as failure:
                    told = f"{phase.__name__}: {str(failure).splitlines()[0]}"
                with lock:
                    found[told] += 1

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(one, range(TOGETHER)))
    return found


def main() -> int:
    """Freeze the verifiers, and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="for each verifier and phase (default 200)")
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
                found = rounds(service, name, options.rounds, Path(temporary))
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
