"""A hundred thousand keys due at the same moment: the effect on the latency of Verify, and the time it takes.

    python -m tests.rotations.due
    python -m tests.rotations.due --keys 5000 --only sqlite --json

The keys are inserted into the database without the server, all with the same next_time, once without webhooks and once
with webhooks to sixteen endpoints. Other keys are verified continuously at a steady pace. Machines are noisy, so both
sides of the comparison come from the same minutes: every few seconds the lease is taken from the scheduler, as another
server would do, and given back. Each rotation must be announced once, and its webhook sent once. The exit code is 1 if
not, or if a verification got a wrong answer. The slowdown of verifications is reported, but is no failure.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.e2e.service import Service, seconds
from tests.harness import CHEAP
from tests.histories.checker import quantile
from tests.histories.regulars import Regulars, present
from tests.histories.scene import Postgresql, memory
from tests.rotations.receiver import Posted, Receiver
from tumbler import keyformat
from tumbler_server.clock import DAY, SECOND, system_clock
from tumbler_server.events.log import EventType
from tumbler_server.keys import record, schedule
from tumbler_server.keys.record import Key
from tumbler_server.secrets import secret
from tumbler_server.store.database import POSTGRESQL, Store, Transaction, open_store
from tumbler_server.store.models import ApiKeyRow, LeaseRow
from tumbler_server.webhooks.deliveries import DeliveryState

DIALECTS = ("sqlite", "postgresql")
PROJECT = "due"
PATHS = tuple(f"/hook/{number}" for number in range(16))

_OPTIONS = ("--webhook-allow-loopback", "--min-rotation-interval", "1s", "--scheduler-lease", "5s")
_INTERVAL = 30 * DAY
_REST = 0.01
"""Average seconds between two calls of a verifying caller."""
_AT_ONCE = 5_000
"""Rows that one transaction inserts."""
_ROWS_PER_SECOND = 4_000
_START = 10.0
"""Most seconds that a server takes to start."""

_ACTING, _PAUSED = 8.0, 3.0
"""Seconds for which the scheduler works, and for which it is then paused."""

_LONGEST = 3_600.0
"""Seconds after which waiting ends. Work that is not done by then is a problem."""


@dataclass
class Run:
    """A run, and its problems."""

    dialect: str
    webhooks: bool
    keys: int
    verified: defaultdict[str, Regulars] = field(default_factory=lambda: defaultdict(Regulars))
    """The results of the verifying callers, by the other activity."""
    lasted: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The seconds of each activity, without pauses."""
    problems: list[str] = field(default_factory=list)

    def ratio(self, name: str, quantile_: float) -> float:
        """Return the ratio of a percentile to the same percentile in the pauses."""
        return quantile(self.verified[name].took, quantile_) / quantile(self.verified["paused"].took, quantile_)


Progress = Callable[[str], None]


class Signals:
    """The shared state of the processes of a run."""

    def __init__(self, context: SpawnContext) -> None:
        self.over: Event = context.Event()
        """Set when the verifying callers must return."""
        self.came: Synchronized[int] = context.Value("q", 0)
        """The number of webhooks that arrived."""


_signals: Signals


def join(signals: Signals) -> None:
    """Store a run's signals in a new process."""
    global _signals  # noqa: PLW0603 - signals can only be passed to a process when it starts
    _signals = signals


def verify(target: str, key: str, texts: Sequence[str]) -> Regulars:
    """Verify keys until ``over`` is set, at a pace that does not saturate the server."""
    return present(target, key, texts, _REST, _signals.over.is_set)


def receive(signals: Signals, line: Connection) -> None:
    """Run the receiver: send its port over the line, receive the secrets and, when told to end, send the counts."""
    os.nice(19)  # it takes the place of other machines
    came: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    secrets: Mapping[str, str] = {}

    def take(posted: Posted) -> int:
        came[posted.id] += 1
        wrong["unsigned"] += not posted.signed_by(secrets.get(posted.path, ""))
        with signals.came.get_lock():
            signals.came.value += 1
        return 204

    with Receiver(take) as receiver:
        line.send(receiver.port)
        secrets = line.recv()
        line.recv()
    line.send((len(came), came.total() - len(came), wrong["unsigned"]))


def run(
    dialect: str, webhooks: bool, folder: Path, database_url: str, keys: int, spell: float, progress: Progress
) -> Run:
    """Run on an installation of its own. ``spell`` is the number of seconds that are measured before and after."""
    done = Run(dialect, webhooks, keys)
    name = f"due-{dialect}-{'told' if webhooks else 'untold'}"
    service = Service(folder / name, database_url, _OPTIONS).init()
    context = multiprocessing.get_context("spawn")
    signals = Signals(context)
    with ExitStack() as open_:
        open_.callback(service.close)
        service.start()
        texts = [service.create(name=f"verified {number}").key for number in range(20)]
        urls = [""]
        if webhooks:
            line = open_.enter_context(_receiver(context, signals))
            port = line.recv()
            urls = [f"http://127.0.0.1:{port}{path}" for path in PATHS]
            line.send({path: _open(service, url) for path, url in zip(PATHS, urls, strict=True)})
        assert service.stop() == 0
        moment = system_clock() + int((keys / _ROWS_PER_SECOND + _START + spell) * SECOND)
        before = _seed(service, keys, urls, moment)
        service.start()
        callers = open_.enter_context(ProcessPoolExecutor(1, context, join, (signals,)))

        store = open_store(service.database_url)
        open_.callback(store.close)

        def verified(what: str, span: float, over: Callable[[], bool]) -> None:
            signals.over.clear()
            verifying = callers.submit(verify, service.target, service.key, texts)
            began = time.monotonic()
            try:
                while not over() and not verifying.done() and time.monotonic() < began + span:
                    time.sleep(0.05)
            finally:
                signals.over.set()
            met = verifying.result()
            done.lasted[what] += time.monotonic() - began
            done.verified[what].took += met.took
            done.verified[what].wrong += met.wrong

        def announced() -> bool:
            ((revision,),) = store.read("SELECT revision FROM log_head WHERE id = 1")
            return int(revision) - before >= keys

        def told() -> bool:
            return signals.came.value >= keys

        verified("warm-up", _LONGEST, lambda: system_clock() > moment - (spell + 1) * SECOND)
        verified("before", _LONGEST, lambda: system_clock() > moment - SECOND // 2)
        if not done.verified["before"].took:
            raise RuntimeError("putting the keys in took too long for anything to be measured before they were due")
        deadline = time.monotonic() + _LONGEST
        for what, over in (("announcing", announced), ("telling", told)) if webhooks else (("announcing", announced),):
            while not over() and time.monotonic() < deadline:
                verified(what, _ACTING, over)
                with _nobody_acting(store):
                    verified("paused", _PAUSED, lambda: False)
            progress(f"{name}: {what} took {done.lasted[what]:.0f} s")
        verified("after", spell, lambda: False)
        del done.verified["warm-up"]
        if webhooks:
            line.send("over")
            came, repeated, unsigned = line.recv()
            if (came, repeated, unsigned) != (keys, 0, 0):
                done.problems.append(
                    f"{came} webhooks came, {repeated} again, {unsigned} without a signature that fits"
                )
        _judge(service, done)
    return done


@contextmanager
def _nobody_acting(store: Store) -> Iterator[None]:
    """Hold the lease, as another server's scheduler would."""
    over = threading.Event()

    def hold() -> None:
        beat = 0
        while not over.is_set():
            beat += 1
            _set_lease(store, holder="due", term=LeaseRow.term + (beat == 1), beat=beat)
            over.wait(0.2)

    holding = threading.Thread(target=hold)
    holding.start()
    try:
        time.sleep(0.5)  # for work that is still in progress
        yield
    finally:
        over.set()
        holding.join()
        _set_lease(store, holder="")


def _set_lease(store: Store, **values: Any) -> None:
    store.write_serialized(lambda transaction: transaction.run(LeaseRow.update(**values)))


@contextmanager
def _receiver(context: SpawnContext, signals: Signals) -> Iterator[Connection]:
    ours, theirs = context.Pipe()
    process = context.Process(target=receive, args=(signals, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        process.join(1)
        process.kill()


def _open(service: Service, url: str) -> str:
    """Create an endpoint for a URL, and return its secret. The key that creates it is never due in a run."""
    rotation = {"interval": seconds(_INTERVAL / SECOND), "webhook_url": url}
    return str(service.create(project_id=PROJECT, name="first", rotation=rotation).webhook_secret)


def _seed(service: Service, count: int, urls: Sequence[str], moment: int) -> int:
    """Insert keys that are due at ``moment`` into the database, without the server. Return the log's head.

    The rows are as the server would write them, except that all share one secret and have no events.
    """
    columns = [column.column_name for column in ApiKeyRow._meta.sorted_fields]
    insert = f"INSERT INTO api_key ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
    made = secret.generate("tmb")
    hashed = secret.Hasher(CHEAP, service.installation.peppers()).hash(made.text, made.secret)
    proofs = {"secret_hash": hashed.secret_hash, "digest": hashed.digest, "pepper_id": hashed.pepper_id}
    now = system_clock()

    def row(number: int) -> tuple[Any, ...]:
        key_id = _id(number)
        key = Key(
            id=key_id,
            project_id=PROJECT,
            name=f"due {number}",
            key_prefix=f"tmb_{key_id}_",
            create_time=now,
            update_time=now,
            rotation_interval=_INTERVAL,
            rotation_next_time=moment,
            webhook_url=urls[number % len(urls)],
            revision=1,
        )
        values = {**record.to_columns(key), **proofs, "alarm_time": schedule.alarm_time(key, now)}
        return tuple(values[name] for name in columns)

    store = open_store(service.database_url)
    try:
        for first in range(0, count, _AT_ONCE):
            rows = [row(number) for number in range(first, min(first + _AT_ONCE, count))]

            def put(transaction: Transaction, rows: Sequence[tuple[Any, ...]] = rows) -> None:
                transaction.run_many(insert, rows)

            store.write_serialized(put)
        if store.dialect == POSTGRESQL:
            store.write_unserialized(
                lambda database: database.execute_sql("ANALYZE api_key")
            )  # autovacuum does so within a minute
        ((head,),) = store.read("SELECT revision FROM log_head WHERE id = 1")
        return int(head)
    finally:
        store.close()


def _id(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, len(keyformat.ALPHABET))
        digits = keyformat.ALPHABET[digit] + digits
    return f"due{digits.rjust(keyformat.ID_LENGTH - 3, '0')}"


def _judge(service: Service, done: Run) -> None:
    due = f"SELECT key_id, COUNT(*) FROM event WHERE type = {int(EventType.ROTATION_DUE)} GROUP BY key_id"  # noqa: S608
    announced = dict(service.read(due))
    if len(announced) != done.keys:
        done.problems.append(f"{len(announced)} of {done.keys} rotations were announced")
    if again := sum(times > 1 for times in announced.values()):
        done.problems.append(f"{again} rotations were announced more than once")
    ((waiting,),) = service.read("SELECT COUNT(*) FROM api_key WHERE alarm_time <= ?", system_clock())
    if waiting:
        done.problems.append(f"{waiting} keys are still due")
    states = {
        DeliveryState(state).name: number
        for state, number in service.read("SELECT state, COUNT(*) FROM webhook_delivery GROUP BY state")
    }
    if states != ({"DELIVERED": done.keys} if done.webhooks else {}):
        done.problems.append(f"deliveries: {states}")
    for what, met in done.verified.items():
        if met.wrong:
            done.problems.append(f"{what}: valid keys were answered {dict(met.wrong)}")


def plain(done: Run) -> dict[str, Any]:
    """Return a run as plain data."""
    return {
        "database": done.dialect,
        "webhooks": done.webhooks,
        "keys": done.keys,
        "seconds": {name: round(lasted, 1) for name, lasted in done.lasted.items()},
        "verify_ms": {
            name: {
                "calls": len(met.took),
                "p50": round(quantile(met.took, 0.5) / 1e6, 2),
                "p99": round(met.p99 / 1e6, 2),
                "max": round(max(met.took, default=0) / 1e6, 2),
            }
            for name, met in done.verified.items()
        },
        "to_paused": {
            name: {"p50": round(done.ratio(name, 0.5), 2), "p99": round(done.ratio(name, 0.99), 2)}
            for name in ("announcing", "telling")
            if name in done.verified
        },
        "problems": done.problems,
    }


def report(runs: Sequence[Run]) -> Table:
    """Return the table of the latencies of Verify, with one line per activity of each run."""
    table = Table("", "Verify", "calls", "p50 ms", "p99 ms", "max ms", "for s", "p50 to paused", "p99 to paused")
    for column in table.columns[2:]:
        column.justify = "right"
    for done in runs:
        told = plain(done)
        for name, met in told["verify_ms"].items():
            table.add_row(
                f"{done.dialect}, {'with' if done.webhooks else 'without'} webhooks",
                name,
                f"{met['calls']:,}",
                *(f"{met[what]:,.1f}" for what in ("p50", "p99", "max")),
                f"{told['seconds'][name]:,.0f}",
                *(f"{to:.2f}" for to in told["to_paused"].get(name, {}).values()),
            )
        table.add_section()
    return table


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.rotations.due", description="Let many keys be due at once.")
    parser.add_argument("--only", choices=DIALECTS, help="on this database alone")
    parser.add_argument("--keys", type=int, default=100_000, help="how many are due at once (default 100,000)")
    parser.add_argument("--seconds", type=float, default=15, help="measured before and after (default 15)")
    parser.add_argument("--without-webhooks", action="store_true", help="leave out the runs with webhooks")
    parser.add_argument("--json", action="store_true", help="print plain data")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and databases are stopped and removed

    def show(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    runs = []
    with memory() as folder, ExitStack() as open_:
        for dialect in [arguments.only] if arguments.only else DIALECTS:
            if dialect == "postgresql":
                postgresql = Postgresql(folder / "postgresql")
                open_.callback(postgresql.close)
            for webhooks in (False,) if arguments.without_webhooks else (False, True):
                url = postgresql.new_database(f"due{int(webhooks)}") if dialect == "postgresql" else ""
                runs.append(run(dialect, webhooks, folder, url, arguments.keys, arguments.seconds, show))
                show(json.dumps(plain(runs[-1])))  # now, since the next run takes long
    wrong = sum(len(done.problems) for done in runs)
    if arguments.json:
        print(json.dumps([plain(done) for done in runs], indent=2))
        return 1 if wrong else 0
    console = Console(width=120)
    console.print(report(runs))
    for done in runs:
        took = ", ".join(
            f"{what} {done.lasted[what]:,.0f} s" for what in ("announcing", "telling") if what in done.lasted
        )
        console.print(f"{done.dialect}: {done.keys:,} rotations due at once, pauses left out: {took}")
        for problem in done.problems:
            console.print(f"problem: {problem}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
