"""A run of writes on one database, with servers that are killed."""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.service import Client, Service, eventually
from tests.kills.checker import Findings, check
from tests.kills.history import Event, History, Row
from tests.kills.victims import KINDS, LONGEST_RESTART, Victims
from tests.kills.writers import PROJECT, Writer
from tests.rotations.crew import LONGEST_TAKEOVER, Crew, NobodyActs
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import NEVER
from tumbler_server.events import log
from tumbler_server.events.log import EventType
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens
from tumbler_server.store.database import Store, open_store

LONGEST_AUDIT = 600.0
"""Seconds after which the final audit is given up. Long, so that a busy machine does not waste two hours of kills."""

WRITERS = 12
SETTLING = 60.0
"""Seconds after the last kill within which everything due must be announced."""

_OPTIONS = ("--min-rotation-interval", "1s", "--scheduler-lease", "1s", "--threads", "8")
_BATCH = 500

Progress = Callable[[str, int, int], None]
"""Called after each kill with the database and the numbers of kills and writes."""


@dataclass(frozen=True)
class Life:
    """One start of a server, and the processes of it to kill, the server itself last."""

    workers: int
    kills: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """Return the flags of ``serve``."""
        return ("--workers", str(self.workers)) if self.workers > 1 else ()


def lives(kills: int, chance: random.Random) -> list[Life]:
    """Return lives in which each kind of process is killed ``kills`` times, alternating one process and two workers.

    Workers are killed once or twice a life, since one that keeps dying young is restarted after ever longer pauses.
    """
    made = []
    for number in range(kills):
        inner = ["worker", "worker", "scheduler"] if number % 2 else ["scheduler"]
        chance.shuffle(inner)
        made.append(Life(1 + number % 2, (*inner, "server")))
    if kills % 2:  # one worker is missing
        made[-1] = Life(2, ("worker", *made[-1].kills))
    return made


@dataclass
class Run:
    """A run on a database, and its problems."""

    dialect: str
    version: str
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    """The sum of the writers' counts; see ``Writer.counts``."""
    seconds: float = 0.0
    history: History = field(default_factory=History)
    findings: Findings = field(default_factory=Findings)
    audit: str = ""
    """The output of ``audit verify``."""
    interrupted: bool = False
    """Whether the user interrupted the run. What was done until then is still checked."""
    problems: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        """Return the number of violations and problems."""
        return self.findings.violations + len(self.problems)


def run(
    dialect: str,
    folder: Path,
    database_url: str,
    kills: int,
    writes: int,
    seed: int,
    progress: Progress | None = None,
    before_checking: Callable[[Service], None] = lambda _: None,
) -> Run:
    """Create an installation in a folder, do a whole run on it, and check it.

    ``database_url`` names an empty database, or is empty for SQLite in the folder. ``kills`` processes of each kind are
    killed, while at least ``writes`` writes are made. ``before_checking`` is called after the writes, before any check.
    """
    began = time.monotonic()
    service = Service(folder / f"writes-{dialect}", database_url, _OPTIONS).init()
    with ExitStack() as open_:
        open_.callback(service.close)
        service.start()
        crew = open_.enter_context(Crew([service]))
        store = open_store(service.database_url)
        open_.callback(store.close)
        done = Run(dialect, _version(store), seed)
        tokens = open_opaque_tokens(store, lambda _: "")
        calling = threading.Event()
        writers = [
            Writer(number, lambda: service.target, lambda token: tokens.point(token).revision, service, seed, calling)
            for number in range(WRITERS)
        ]
        victims = Victims(service, crew, random.Random(seed), calling)  # noqa: S311 - no secret
        over = threading.Event()
        with ThreadPoolExecutor(WRITERS) as pool:
            running = [pool.submit(writer.run, over) for writer in writers]
            try:
                _kill(service, victims, writers, done, kills, writes, progress)
            except (AssertionError, NobodyActs) as failure:
                done.problems.append(f"it did not go on: {failure!r}")
                _start_again(service)
            except KeyboardInterrupt:  # keep the results of an hour
                done.interrupted = True
                _start_again(service)
            finally:
                over.set()
        for each in running:
            each.result()
        before_checking(service)
        _settle(store, writers, done)
        if outlived := victims.outlived(LONGEST_TAKEOVER):
            done.problems.append(f"{outlived} processes outlived what they belonged to")
        done.history = _history(store, service, writers)
    audit = service.command("audit", "verify", patience=LONGEST_AUDIT)
    done.audit = audit.stdout.strip()
    if audit.returncode:
        done.problems.append(f"audit verify: {audit.stdout}{audit.stderr}")
    for writer in writers:
        done.counts += writer.counts
        done.problems += writer.problems
    if (killed := done.kills.total()) < len(KINDS) * kills:
        done.problems.append(f"{killed} of {len(KINDS) * kills} kills were made")
    done.findings = check(done.history)
    done.seconds = time.monotonic() - began
    return done


def _kill(
    service: Service,
    victims: Victims,
    writers: list[Writer],
    done: Run,
    kills: int,
    writes: int,
    progress: Progress | None,
) -> None:
    chance = random.Random(done.seed)  # noqa: S311 - no secret
    share = math.ceil(writes / (len(KINDS) * kills)) if kills else writes

    def written() -> int:
        return sum(len(writer.writes) for writer in writers)

    def write(count: int) -> None:
        """Wait until ``count`` more writes are acknowledged, or a writer gives up."""
        enough = written() + count
        eventually(lambda: written() >= enough or any(writer.problems for writer in writers), LONGEST_RESTART + count)

    for number, life in enumerate(lives(kills, chance)):
        if number:
            service.start(*life.options)
        for kind in life.kills:
            write(share)
            victims.strike(kind, life.workers)
            done.kills[kind] += 1
            if progress:
                progress(done.dialect, done.kills.total(), written())
    if kills:
        service.start()
    write(max(share, writes - written()))


def _start_again(service: Service) -> None:
    """Restart a server from whatever state it is in, because the writers wait for responses."""
    service.close()
    service.start()


def _settle(store: Store, writers: list[Writer], done: Run) -> None:
    """Wait until every due rotation is announced."""
    scheduled = sum(len(writer.scheduled) for writer in writers)
    kind = int(EventType.ROTATION_DUE)
    try:
        eventually(
            lambda: store.read("SELECT COUNT(*) FROM event WHERE type = ?", (kind,))[0][0] >= scheduled, SETTLING
        )
    except AssertionError:
        done.problems.append(f"after {SETTLING:.0f} s there was still something to announce")


def _history(store: Store, service: Service, writers: list[Writer]) -> History:
    held = [each for writer in writers for each in writer.held if each.text]
    verdicts = _verdicts(service, {each.id: each.text for each in held})
    events: list[Event] = []
    after = 0
    while page := log.events_after(store, after, 5_000):
        events += [_event(event) for event in page if event.project_id.startswith(PROJECT)]
        after = page[-1].revision
    rows = store.read(
        "SELECT id, name, active, revoke_time, replaces_key_id, replaced_by_key_id FROM api_key "
        "WHERE project_id LIKE ?",
        (f"{PROJECT}%",),
    )
    return History(
        writes=[write for writer in writers for write in writer.writes],
        scheduled=frozenset().union(*(writer.scheduled for writer in writers)),
        events=events,
        rows={
            key_id: Row(name, bool(active), revoked != NEVER, replaces, replaced_by)
            for key_id, name, active, revoked, replaces, replaced_by in rows
        },
        requests=dict(store.read("SELECT request_id, key_id FROM request WHERE project_id LIKE ?", (f"{PROJECT}%",))),
        expected={each.id: each.verdict for each in held},
        verdicts=verdicts,
    )


def _event(event: log.Event) -> Event:
    detail = event.detail
    value = detail.get("replaced_by_key_id") or detail.get("new.name", "")
    return Event(event.revision, EventType(event.type).name, event.key_id, value)


def _verdicts(client: Client, shown: dict[str, str]) -> dict[str, str]:
    """Verify every secret that was shown, fully consistently."""
    fresh = pb.Consistency(fully_consistent=True)
    verdicts, items = {}, list(shown.items())
    for begin in range(0, len(items), _BATCH):
        batch = items[begin : begin + _BATCH]
        requests = [pb.VerifyRequest(key=text, consistency=fresh) for _, text in batch]
        answers = client.call("BatchVerify", pb.BatchVerifyRequest(requests=requests)).responses
        for (key_id, _), answer in zip(batch, answers, strict=True):
            verdicts[key_id] = pb.VerifyCode.Name(answer.code).removeprefix("VERIFY_CODE_")
    return verdicts


def _version(store: Store) -> str:
    if store.dialect == "sqlite":
        return f"SQLite {store.read('SELECT sqlite_version()')[0][0]}"
    return f"PostgreSQL {store.read('SHOW server_version')[0][0]}"
