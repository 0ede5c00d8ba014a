"""Servers killed while rotations are due: each rotation is announced, sent and claimed once, whatever is killed.

    python -m tests.kills --part rotations
    python -m tests.kills --part rotations --only postgresql --rotation-kills 20 --keys 100 --seed 7 --json

A thousand keys fall due at once and are claimed over and over, so that there is always something to announce, send and
claim. Meanwhile the acting process is killed 200 times: at any moment, right after an announcement, before a receiver
has answered, as it takes over the lease, or during a claim. On SQLite this is in turn the scheduler, its worker out of
two, and the whole server. On PostgreSQL it is the scheduler, and one of two whole servers. At the end everything that
was sent, answered and stored is compared with the promises (``checker``).
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.e2e.service import Service, eventually, seconds
from tests.histories.checker import quantile
from tests.histories.scene import begin_other
from tests.rotations.checker import Findings, check
from tests.rotations.crew import LONGEST_TAKEOVER, Crew, NobodyActs
from tests.rotations.history import UNKNOWN, Event, History, KeyRow, Row
from tests.rotations.owners import GRACES, Owners, verdicts
from tests.rotations.receiver import Receiver
from tumbler_server.clock import NEVER, system_clock
from tumbler_server.events import log
from tumbler_server.events.log import EventType
from tumbler_server.store.database import Store
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.messages import TYPES

PROJECT = "rotations"
PATHS = tuple(f"/hook/{number}" for number in range(8))
"""The paths of the endpoints, each with a secret of its own."""
INTERVAL = 2.0
"""Seconds from one rotation of a key to the next."""
CLAIMS_PER_SECOND = 15.0
SETTLING = 120.0
"""Seconds after the last kill within which all work must be done."""

_OPTIONS = (
    "--webhook-allow-loopback",
    "--min-rotation-interval", "1s",
    "--scheduler-lease", "1s",
    "--threads", "8",
)  # fmt: skip
_AIMED_FOR = 3.0
"""Seconds to wait for the moment that is aimed at. After that, the kill comes at any other."""

Progress = Callable[[str, int], None]
"""Called after each kill with the database and the number of kills."""


@dataclass
class Run:
    """A run on a database, and its problems."""

    dialect: str
    seed: int
    keys: int
    aims: Counter[str] = field(default_factory=Counter)
    """The number of kills by the moment that was aimed at."""
    gaps: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds until a scheduler acted again, by what was killed."""
    seconds: float = 0.0
    history: History = field(default_factory=History)
    findings: Findings = field(default_factory=Findings)
    problems: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Return the number of violations and problems."""
        return self.findings.violations + len(self.problems)


def run(
    dialect: str, folder: Path, database_url: str, kills: int, keys: int, seed: int, progress: Progress | None = None
) -> Run:
    """Create an installation in a folder, do a whole run on it, and check it.

    ``database_url`` names an empty database, or is empty for SQLite in the folder.
    """
    done, began = Run(dialect, seed, keys), time.monotonic()
    workers = ("--workers", "2") if dialect == "sqlite" else ()
    service = Service(folder / f"kills-{dialect}", database_url, (*_OPTIONS, *workers)).init()
    with ExitStack() as open_:
        open_.callback(service.close)
        service.start()
        crew = open_.enter_context(Crew([service, begin_other(service)] if dialect == "postgresql" else [service]))
        owners = Owners(lambda: crew.targets, service.key, CLAIMS_PER_SECOND, seed)
        receiver = open_.enter_context(Receiver(owners.take))
        _make(service, receiver, owners, keys)
        owners.start()
        try:
            _kill(crew, receiver, owners, done, kills, progress)
        except NobodyActs:
            done.problems.append(f"nobody acted for {LONGEST_TAKEOVER:.0f} s")
        finally:
            receiver.hold.clear()
            owners.stop()
        crew.wait_for_restarts()
        time.sleep(GRACES[0])  # until the grace of the last replaced key is over
        try:
            eventually(lambda: _settled(crew.store), SETTLING)
        except AssertionError:
            done.problems.append(f"after {SETTLING:.0f} s there was still something to do")
        shown = verdicts(crew.targets, service.key, owners.shown)
        done.history = _history(crew.store, owners, shown)
    audit = service.command("audit", "verify")
    if audit.returncode:
        done.problems.append(f"audit verify: {audit.stdout}{audit.stderr}")
    done.findings = check(done.history)
    _see_that_it_shows_something(done, kills)
    done.seconds = time.monotonic() - began
    return done


def _make(service: Service, receiver: Receiver, owners: Owners, keys: int) -> None:
    """Create the keys, which are all due at once soon after."""
    for number in range(keys):
        path = PATHS[number % len(PATHS)]
        rotation = {"interval": seconds(INTERVAL), "webhook_url": receiver.url(path)}
        created = service.create(project_id=PROJECT, name=f"key {number}", rotation=rotation)
        if created.webhook_secret:
            owners.secrets[path] = created.webhook_secret
        owners.shown[created.api_key.id] = created.key
    owners.flaky = PATHS[0]


def _kill(crew: Crew, receiver: Receiver, owners: Owners, done: Run, kills: int, progress: Progress | None) -> None:
    chance = random.Random(done.seed)  # noqa: S311 - no secret
    aims: dict[str, Callable[[], bool]] = {
        "at any moment": lambda: _rest(chance.uniform(0, 2.5)),
        "after an announcement": lambda: _announced(crew.store),
        "before an answer": lambda: _set_again(owners.posted),
        "at the takeover": lambda: _rest(chance.uniform(0, 0.05)),
        "during a claim": lambda: _set_again(owners.claiming) and _rest(chance.uniform(0, 0.01)),
    }
    crew.wait_for_acting()
    for number in range(1, kills + 1):
        aim = chance.choices(list(aims), (4, 2, 2, 1, 1))[0]
        if aim != "at the takeover":
            _rest(chance.uniform(0, 1))  # lets some work be done in between
        if aim == "before an answer":
            receiver.hold.set()
        done.aims[aim if aims[aim]() else f"{aim}, in vain"] += 1
        what, gap = _strike(crew)
        receiver.hold.clear()
        done.gaps[what].append(gap)
        if progress:
            progress(done.dialect, number)


def _strike(crew: Crew) -> tuple[str, float]:
    """Kill the acting process. Return what it was, and the seconds until a scheduler acted again."""
    acting = crew.wait_for_acting()
    what, killed = crew.strike(acting)
    crew.wait_for_acting(acting.term)
    return what, time.monotonic() - killed


def _rest(span: float) -> bool:
    time.sleep(span)
    return True


def _announced(store: Store) -> bool:
    """Wait until a rotation is announced, and return whether one was."""
    ((before,),) = store.read("SELECT revision FROM log_head WHERE id = 1")
    newer = f"SELECT 1 FROM event WHERE revision > ? AND type = {int(EventType.ROTATION_DUE)} LIMIT 1"  # noqa: S608
    deadline = time.monotonic() + _AIMED_FOR
    while time.monotonic() < deadline:
        if store.read(newer, (before,)):
            return True
        time.sleep(0.002)
    return False


def _set_again(event: Any) -> bool:
    event.clear()
    return bool(event.wait(_AIMED_FOR))


def _settled(store: Store) -> bool:
    """Return whether everything due is announced, and no delivery is left to be made or sent."""
    ((waiting,),) = store.read(
        "SELECT COUNT(*) FROM api_key WHERE rotation_interval > 0 AND replaced_by_key_id = '' AND revoke_time = ? "
        "AND rotation_due_revision = 0",
        (NEVER,),
    )
    ((behind,),) = store.read("SELECT COUNT(*) FROM outbox o, log_head h WHERE o.revision < h.revision")
    ((pending,),) = store.read("SELECT COUNT(*) FROM webhook_delivery WHERE state = ?", (int(DeliveryState.PENDING),))
    return not (waiting or behind or pending)


def _history(store: Store, owners: Owners, shown: dict[str, str]) -> History:
    now = system_clock()
    events, page = [], log.events_after(store, 0, 5_000, PROJECT)
    while page:
        events += [Event(each.revision, EventType(each.type).name, each.key_id, each.detail) for each in page]
        page = log.events_after(store, page[-1].revision, 5_000, PROJECT)
    rows = store.read("SELECT revision, id, type, key_id, state FROM webhook_delivery ORDER BY revision")
    keys = store.read(
        "SELECT id, replaces_key_id, replaced_by_key_id, revoke_time, grace_expire_time, rotation_due_revision "
        "FROM api_key WHERE project_id = ?",
        (PROJECT,),
    )
    return History(
        arrivals=list(owners.arrivals),
        claims=list(owners.claims),
        events=events,
        rows=[
            Row(revision, webhook_id, TYPES[EventType(kind)], key_id, DeliveryState(state).name)
            for revision, webhook_id, kind, key_id, state in rows
        ],
        keys=[
            KeyRow(key_id, replaces, replaced_by, revoked != NEVER, revoked != NEVER or grace_until <= now, due)
            for key_id, replaces, replaced_by, revoked, grace_until, due in keys
        ],
        verdicts=shown,
    )


def _see_that_it_shows_something(done: Run, kills: int) -> None:
    if (killed := sum(done.aims.values())) < kills:
        done.problems.append(f"{killed} of {kills} kills were made")
    told = plain(done)
    if told["announced"] <= done.keys or not told["claimed"]:
        done.problems.append(f"{told['announced']} rotations were announced and {told['claimed']} claimed: too few")


def plain(done: Run) -> dict[str, Any]:
    """Return a run as plain data."""
    history = done.history
    events = Counter(event.type for event in history.events)
    outcomes = Counter(claim.outcome for claim in history.claims)
    ids = {arrival.webhook_id for arrival in history.arrivals}
    return {
        "database": done.dialect,
        "seed": done.seed,
        "keys": done.keys,
        "kills": sum(map(len, done.gaps.values())),
        "aimed": dict(done.aims),
        "announced": events["ROTATION_DUE"],
        "claimed": events["ROTATION_CLAIMED"],
        "claims": dict(outcomes),
        "webhooks": len(ids),
        "repeated": len(history.arrivals) - len(ids),
        "deliveries": dict(Counter(row.state for row in history.rows)),
        "secrets_verified": dict(Counter(history.verdicts.values())),
        "seconds_without_acting": {
            what: {
                "kills": len(gaps),
                "p50": round(quantile([int(gap * 1e6) for gap in gaps], 0.5) / 1e6, 2),
                "max": round(max(gaps), 2),
            }
            for what, gaps in sorted(done.gaps.items())
        },
        "seconds": round(done.seconds, 1),
        "violations": done.findings.violations,
        "problems": [*done.findings.examples, *done.problems],
    }


def report(runs: Sequence[Run]) -> Table:
    """Return the table of the results, with one line per database."""
    table = Table(
        "",
        "kills",
        "announced",
        "claimed",
        "claims refused",
        "claims whose\nanswer was lost",
        "webhooks",
        "sent again",
        "secrets\nverified",
        "wrong",
        title="The process that acts, killed while rotations are due",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for done in runs:
        told = plain(done)
        lost = told["claims"].get(UNKNOWN, 0)
        refused = sum(times for outcome, times in told["claims"].items() if outcome not in ("OK", UNKNOWN))
        numbers = (
            told["kills"], told["announced"], told["claimed"], refused, lost, told["webhooks"], told["repeated"],
            len(done.history.verdicts), done.wrong,
        )  # fmt: skip
        table.add_row(done.dialect, *(f"{number:,}" for number in numbers))
    return table


def takeovers(runs: Sequence[Run]) -> Table:
    """Return the table of the times without an acting scheduler."""
    named = {
        "scheduler": "the scheduler alone",
        "worker": "one of two workers",
        "server": "one of two servers",
        "all": "the only server that ran",
    }
    table = Table("", "killed", "times", "p50 s", "max s", title="Until somebody acted again")
    for column in table.columns[2:]:
        column.justify = "right"
    for done in runs:
        for what, gap in plain(done)["seconds_without_acting"].items():
            table.add_row(done.dialect, named[what], f"{gap['kills']:,}", f"{gap['p50']:.2f}", f"{gap['max']:.2f}")
    return table


def show(runs: Sequence[Run], console: Console) -> None:
    """Print the tables, and the moments that were aimed at."""
    console.print(report(runs))
    console.print(takeovers(runs))
    for done in runs:
        aimed = ", ".join(f"{times} {aim}" for aim, times in done.aims.most_common())
        console.print(f"{done.dialect}: {aimed}; {done.seconds:.0f} s, seed {done.seed}")
        for problem in (*done.findings.examples, *done.problems):
            console.print(f"problem: {problem}", style="red", markup=False)
