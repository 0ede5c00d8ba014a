"""Worst days in any order: servers that die, clocks that leap, backups that are put back under what runs.

Two servers of one database answer for keys that change; a model that is far simpler says what each answer must be. In a
test there are few examples; ``python -m tests.property.test_worst_days_machine`` makes as many as it is told.
"""

import argparse
import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from tests.domain import OPERATOR
from tests.histories.scene import Postgresql, memory
from tests.property.test_lifecycle_machine import (
    NOBODYS,
    Lines,
    Lives,
    ModelKey,
    choices,
    lives,
    scopes,
    servers,
)
from tests.tampering import Rows, put_back, rows
from tumbler.decide import Demand
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, MINUTE
from tumbler_server.errors import StoreUnavailable, TumblerError
from tumbler_server.events import log
from tumbler_server.events.retention import Retention
from tumbler_server.scheduler import timekeeping
from tumbler_server.scheduler.timekeeping import Timekeeper
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.verify.verifier import Question

SECONDS_PER_LINE = 60

leaps = st.sampled_from([-3_650 * DAY, -500 * DAY, 500 * DAY, 3_650 * DAY])


class Killed(BaseException):
    """A server was killed while it wrote."""


class WorstDays(Lines):
    """Two servers, with every kind of failure of a worst day."""

    keys = Lines.keys

    @staticmethod
    def passed() -> None:
        """Count an example that has passed. A class attribute, since hypothesis creates machines without arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.backup: tuple[Rows, list[tuple[ModelKey, dict[str, Any]]], int] | None = None

    @rule(server=servers, choice=choices, what=st.sampled_from(["revoke", "off", "on"]))
    def stop(self, server: int, choice: int, what: str) -> None:
        """Revoke a key, or deactivate or activate it."""
        if what == "revoke":
            Lives.revoke(self, server, self._any(choice))
        else:
            Lives.switch(self, server, self._any(choice), what == "on")

    @rule(server=servers, choice=choices, granted=scopes)
    def change_scopes(self, server: int, choice: int, granted: set[str]) -> None:
        """Change a key's scopes."""
        Lives.change_scopes(self, server, self._any(choice), granted)

    @rule(server=servers, choice=choices, ttl=lives)
    def change_expiry(self, server: int, choice: int, ttl: int | None) -> None:
        """Change or remove a key's expiry."""
        Lives.change_expiry(self, server, self._any(choice), ttl)

    @rule(server=servers, choice=choices, what=st.sampled_from(["create", "revoke", "off", "rotate"]))
    def die_while_writing(self, server: int, choice: int, what: str) -> None:
        """Kill a server between a change and its commit. Nothing of the change may remain."""
        domain, key = self.servers[server], self._any(choice)
        write = domain.store.write_serialized

        def killed(work: Any, *args: Any) -> NoReturn:
            def half(transaction: Transaction) -> NoReturn:
                work(transaction)
                raise Killed

            write(half, *args)
            raise AssertionError("the transaction went on")

        domain.store.write_serialized = killed  # type: ignore[method-assign,assignment]
        try:
            if what == "create":
                domain.create()
            elif what == "revoke":
                domain.revoke(key.id)
            elif what == "off":
                domain.lifecycle.set_active(OPERATOR, key.id, active=False)
            else:
                domain.rotate(key.id)
        except (Killed, TumblerError):
            pass
        self._begin_again(server)

    @rule(leap=leaps, server=servers)
    def leap(self, leap: int, server: int) -> None:
        """Set the clock wrong by years for a while. Nothing may be removed or changed because of it."""
        timekeeping.trust(self.servers[server].store, self.clock.now)
        self.clock.advance(leap)
        store = self.servers[server].store
        before = log.head(store), log.anchor(store)
        believed = Timekeeper(store, self.clock, self.servers[server].monotonic).now
        assert Retention(store, believed, 400 * DAY).remove() == 0
        assert (log.head(store), log.anchor(store)) == before
        self.clock.advance(-leap)

    @rule()
    def back_up(self) -> None:
        """Take a backup."""
        model = [(key, dict(vars(key)) | {"events": list(key.events)}) for key in self.model]
        self.backup = rows(self.servers[0].store), model, self.clock.now

    @precondition(lambda self: self.backup is not None)
    @rule()
    def put_back(self) -> None:
        """Restore a backup under running servers, then restart them. None may accept a key that it knew to be ended."""
        assert self.backup is not None
        before, model, _ = self.backup
        put_back(self.servers[0].store, before)
        self.settle()
        now = self.clock.now
        for server in self.servers:
            for key in self.model:
                told = key.verdict(now, NOBODYS if key.unused else ())
                try:
                    demand = Demand(required_scopes=NOBODYS if key.unused else ())
                    code = server.verifier.verify(Question(key.text, demand)).code.name
                except StoreUnavailable:
                    continue
                assert code == told or code != "VALID"
        self.model.clear()
        for key, was in model:
            vars(key).update(was | {"events": list(was["events"])})
            self.model.append(key)
        for server in range(len(self.servers)):
            self._begin_again(server)

    def _any(self, choice: int) -> ModelKey:
        return self.model[-1 - choice % len(self.model)]

    def teardown(self) -> None:
        """At the end, the audit finds nothing wrong."""
        assert audit.run(self.servers[0].store, self.clock).problems == ()
        super().teardown()
        WorstDays.passed()


class TestWorstDays(WorstDays.TestCase):  # type: ignore[misc,name-defined]
    """Verdicts, states and the log match the model, whatever goes wrong, in any order."""

    settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


class OneProcess(WorstDays):
    """The same with one serving process."""

    processes = 1


class TestOneProcess(OneProcess.TestCase):  # type: ignore[misc,name-defined]
    """One process, with its cache, behaves like two."""

    settings = settings(max_examples=10, stateful_step_count=20, deadline=None)


def main() -> None:
    """Try the requested number of examples, on one database or both, with one process, two, or each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="how many (10,000: some hours)")
    parser.add_argument("--steps", type=int, default=50, help="how long each is (50)")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one database instead of both")
    parser.add_argument("--processes", type=int, choices=[1, 2], help="one process, or two, instead of each")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # failures are intended
    wanted = settings(
        max_examples=options.examples,
        stateful_step_count=options.steps,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    databases = [options.only] if options.only else ["sqlite", "postgresql"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a database is stopped and removed
    for database, processes in itertools.product(databases, [options.processes] if options.processes else [1, 2]):
        machine = WorstDays if processes > 1 else OneProcess
        with _counted(f"{database}, processes: {processes}", options.steps):
            if database == "sqlite":
                run_state_machine_as_test(machine, settings=wanted)
            else:
                _on_postgresql(machine, wanted)


@contextmanager
def _counted(what: str, steps: int) -> Iterator[None]:
    """Report the number of passed examples, on stderr each minute and on stdout at the end, even at an early one."""
    began = told = time.monotonic()
    passed = 0

    def tell(file: TextIO) -> None:
        seconds = time.monotonic() - began
        print(f"{what}: {passed:,} examples of {steps} steps passed in {seconds:,.0f} s", file=file, flush=True)

    def count() -> None:
        nonlocal told, passed
        passed += 1
        if time.monotonic() - told >= SECONDS_PER_LINE:
            told = time.monotonic()
            tell(sys.stderr)

    WorstDays.passed = staticmethod(count)
    try:
        yield
    finally:
        tell(sys.stdout)


def _on_postgresql(machine: type[WorstDays], wanted: settings) -> None:
    with memory() as folder, closing(Postgresql(folder / "postgresql")) as server:
        fresh: list[Rows] = []

        class OnPostgreSQL(machine):  # type: ignore[valid-type,misc]
            """The same on PostgreSQL, with one database for all examples, which is emptied for each."""

            def place(self, folder: Path) -> str:  # noqa: ARG002 - SQLite's
                return server.url

            def founded(self, url: str) -> Store:
                if not fresh:
                    store = super().founded(url)
                    fresh.append(rows(store))
                else:
                    store = open_store(url, timeout=10 * MINUTE)
                    put_back(store, fresh[0])
                return store

            def settle(self) -> None:
                for each in self.servers:
                    each.let_lapse()

        run_state_machine_as_test(OnPostgreSQL, settings=wanted)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # the examples so far were reported
        sys.exit(130)
