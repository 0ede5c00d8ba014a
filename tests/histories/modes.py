"""The kinds of installations and faults for histories, and the code that makes a history."""

import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.service import Service
from tests.histories import drivers, faults, keys
from tests.histories.board import Board
from tests.histories.checker import Findings, Promise, check
from tests.histories.drivers import Revoker, Verifier
from tests.histories.faults import MAX_STALENESS, Fault
from tests.histories.history import PASSING, History, Revoke
from tests.histories.keys import Made
from tests.histories.scene import Postgresql, Scene, begin_other, processes_that_serve

SECOND = 1_000_000_000

_MOST_UNSEEN = 0.05
"""The share of keys not verified both before and after their revocation, above which a history shows too little."""


@dataclass(frozen=True)
class Mode:
    """A kind of installation (one server with several workers, or two servers), and a fault."""

    name: str
    about: str
    dialect: str
    servers: int = 1
    workers: int = 1
    options: tuple[str, ...] = ()
    fault: Fault | None = None
    revokes: int = 1_000
    rate: float = 100.0
    """Most revocations a second."""
    ahead: int = 50
    """Keys that are cached before they are revoked, enough for the length of a fault."""

    @property
    def settling(self) -> float:
        """Return the seconds for which verifications go on after the last revocation."""
        return MAX_STALENESS + 0.5 if self.promise.servers - self.promise.changing else 0.5

    @property
    def promise(self) -> Promise:
        """Return what docs/contract.md, "Consistency", promises for this mode."""
        names = frozenset("AB"[: self.servers])
        everywhere = self.dialect == "sqlite"
        return Promise(
            max_staleness=int(MAX_STALENESS * SECOND),
            servers=names,
            changing=names if everywhere else frozenset("A"),
            # On PostgreSQL, the workers of a server promise each other only revocations that have returned.
            linear=names if everywhere or self.workers == 1 else frozenset(),
            bearable=PASSING if self.fault else frozenset(),
        )


MODES = (
    Mode("sqlite-workers", "one server of two workers on SQLite", "sqlite", workers=2, revokes=10_000),
    Mode("sqlite-servers", "two servers on one SQLite file", "sqlite", servers=2),
    Mode("postgresql-servers", "two servers on PostgreSQL", "postgresql", servers=2, revokes=10_000),
    Mode("postgresql-workers", "one server of two workers on PostgreSQL", "postgresql", workers=2),
    Mode("no-notify", "without NOTIFY", "postgresql", servers=2, options=("--no-database-notify",)),
    Mode(
        "listener-killed",
        "B's connections killed",
        "postgresql",
        servers=2,
        fault=faults.listener_killed,
        rate=50,
        ahead=100,
    ),
    Mode("stopped", "B stopped and continued", "postgresql", servers=2, fault=faults.stopped, rate=50, ahead=300),
    Mode(
        "database-down",
        "crashed and restarted",
        "postgresql",
        servers=2,
        fault=faults.database_down,
        rate=50,
        ahead=100,
    ),
)


@dataclass(frozen=True)
class Run:
    """A history, with its findings, and problems in making it."""

    mode: Mode
    history: History
    findings: Findings
    faults: Counter[str]
    problems: Sequence[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Return the number of violations and problems."""
        return self.findings.violations + len(self.problems)


Progress = Callable[[float, int], None]
"""Called once a second with the elapsed seconds and the number of revoked keys."""


def run(
    mode: Mode,
    folder: Path,
    database_url: str = "",
    postgresql: Postgresql | None = None,
    progress: Progress | None = None,
) -> Run:
    """Create an installation in a folder, make the mode's history on it, and check the history.

    ``database_url`` names an empty database, or is empty for the embedded one. ``postgresql`` is its server, which some
    faults need.
    """
    service = Service(folder / mode.name, database_url, ("--workers", str(mode.workers), *mode.options)).init()
    made = keys.make(service.installation, mode.revokes)
    with _serving(mode, service, postgresql) as scene:
        history, struck, serving = _make(mode, scene, made, progress)
    problems = [] if serving == mode.workers else [f"{serving} of {mode.workers} workers had a connection"]
    audit = service.command("audit", "verify")
    if audit.returncode:
        problems.append(f"audit verify: {audit.stdout}{audit.stderr}")
    findings = check(history, mode.promise)
    for server, number in findings.unseen.items():
        if number > _MOST_UNSEEN * findings.revokes:
            problems.append(f"{server} was not asked both before and after {number} of the revocations")
    problems += [f"the fault did not strike: no {what}" for what, times in struck.items() if not times]
    return Run(mode, history, findings, struck, problems)


@contextmanager
def _serving(mode: Mode, service: Service, postgresql: Postgresql | None) -> Iterator[Scene]:
    with ExitStack() as open_:
        open_.callback(service.close)
        servers = {"A": service.start()}
        if mode.servers == 2:
            servers["B"] = begin_other(service)
            open_.callback(servers["B"].close)
        yield Scene(servers, postgresql)


def _make(
    mode: Mode, scene: Scene, made: Sequence[Made], progress: Progress | None
) -> tuple[History, Counter[str], int]:
    """Run the callers and the fault.

    Returns the history, the counts of the fault's actions, and the number of processes of the revoking server that took
    calls.
    """
    first = scene.servers["A"]
    verifiers = _verifiers(mode, scene, [each.text for each in made])
    context = multiprocessing.get_context("spawn")
    board = Board(context, len(made), len(verifiers))
    revoker = Revoker(first.target, first.metadata, [each.id for each in made], mode.rate, mode.ahead)
    over = threading.Event()
    with (
        ThreadPoolExecutor(1) as breaker,
        ProcessPoolExecutor(len(verifiers) + 1, context, drivers.join, (board,)) as callers,
    ):
        try:
            verifying = [callers.submit(verifier.run) for verifier in verifiers]
            revoking = callers.submit(revoker.run)
            breaking = breaker.submit(mode.fault, scene, over) if mode.fault else None
            _watch([revoking, *verifying], board, progress)
            revokes: list[Revoke] = revoking.result() if revoking.done() else []
            serving = processes_that_serve(first)
            over.set()
            struck: Counter[str] = breaking.result() if breaking else Counter()
            wait(verifying, timeout=mode.settling, return_when=FIRST_EXCEPTION)
        finally:
            over.set()
            board.finish()
        verifies = [
            each for verifier, done in zip(verifiers, verifying, strict=True) for each in verifier.unpack(done.result())
        ]
    return History(revokes, verifies), struck, serving


def _verifiers(mode: Mode, scene: Scene, texts: Sequence[str]) -> list[Verifier]:
    """Return the verifiers: one for each server, or two if each of its workers must get some connections."""
    each = [
        (name, service, connections)
        for (name, service) in scene.servers.items()
        for connections in ([4, 4] if mode.workers > 1 else [{"A": 2, "B": 3}[name]])
    ]
    sweepers = 2 if mode.workers > 1 else 1
    return [
        Verifier(number, name, service.target, service.metadata, texts, connections, mode.ahead, sweepers)
        for number, (name, service, connections) in enumerate(each)
    ]


def _watch(running: Sequence["Future[Any]"], board: Board, progress: Progress | None) -> None:
    """Wait until the first of these futures has ended, or any has failed."""
    began = time.monotonic()
    while True:
        done, _ = wait(running, timeout=1, return_when=FIRST_EXCEPTION)
        if running[0].done() or any(future.exception() for future in done):
            return
        if progress:
            progress(time.monotonic() - began, board.revoked)
