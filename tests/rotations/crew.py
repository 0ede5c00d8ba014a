"""The servers of a run, the one scheduler of theirs that acts, and its violent end."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import psutil

from tests.e2e.service import Service
from tumbler_server.store.database import Store, open_store

LONGEST_TAKEOVER = 30.0
"""Seconds after which somebody must act again, whatever was killed."""

_LOOK = 0.005
"""Seconds between two looks at the database."""


class Acting(NamedTuple):
    """The scheduler that holds the lease, and the term that it holds it for."""

    pid: int
    term: int


class NobodyActs(Exception):
    """Nobody took the lease in time."""


class Crew:
    """The servers, on one database. Those that are killed are started again, at other addresses, by ``strike``."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = tuple(services)
        self.store: Store = open_store(services[0].database_url)
        """The database, past the servers."""
        self._starter = ThreadPoolExecutor(len(services))
        self._restarts: dict[Service, Future[Service]] = {}
        self._struck = 0

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._starter.shutdown(wait=True)
        self.store.close()
        for service in self.services:
            service.close()

    @property
    def targets(self) -> list[str]:
        """Return the servers' addresses; while one is started again, the one that it had."""
        return [service.target for service in self.services]

    def wait_for_restarts(self) -> None:
        """Wait until all that were killed serve again. Raises what kept one from it."""
        for restart in self._restarts.values():
            restart.result()

    def acting(self) -> Acting | None:
        """Return who acts; None where the lease is held by nobody who lives."""
        ((holder, term),) = self.store.read("SELECT holder, term FROM lease WHERE id = 1")
        pid = _scheduler_of(int(holder.split("/")[1])) if holder else 0
        return Acting(pid, int(term)) if pid and self._owner(pid) else None

    def wait_for_acting(self, after: int = 0, patience: float = LONGEST_TAKEOVER) -> Acting:
        """Wait until somebody acts for a later term. Raises ``NobodyActs``."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            ((term,),) = self.store.read("SELECT term FROM lease WHERE id = 1")
            if term > after and (acting := self.acting()):
                return acting
            time.sleep(_LOOK)
        raise NobodyActs

    def strike(self, acting: Acting) -> tuple[str, float]:
        """End what acts, as a power cut would, and see that it is started again.

        Returns what was ended and when, by the monotonic clock. It is in turn the ``scheduler`` alone, which its server
        replaces; where there are workers, the ``worker`` that it belongs to, which the supervisor replaces; and a whole
        ``server`` beside which another runs, or ``all`` that ran. One that is being started is waited for: if it cannot
        start, that is another failure.
        """
        service = self.owner(acting)
        assert service is not None
        assert service.process is not None
        if service in self._restarts:
            self._restarts[service].result()
        worker = psutil.Process(acting.pid).ppid()
        turn, self._struck = self._struck % 3, self._struck + 1
        killed = time.monotonic()
        if turn == 0 or (turn == 1 and worker == service.process.pid):
            os.kill(acting.pid, signal.SIGKILL)
            return "scheduler", killed
        if turn == 1:
            os.kill(worker, signal.SIGKILL)
            return "worker", killed
        others = [restart for other, restart in self._restarts.items() if other is not service]
        alone = len(self.services) == 1 or not all(restart.done() for restart in others)
        self._end(service)
        return "all" if alone else "server", killed

    def owner(self, acting: Acting) -> Service | None:
        """Return the server that a process belongs to; None where that does not run."""
        return self._owner(acting.pid)

    def _end(self, service: Service) -> None:
        assert service.process is not None
        below = psutil.Process(service.process.pid).children(recursive=True)
        service.process.kill()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        service.process.wait()
        psutil.wait_procs(below, 10)
        self._restarts[service] = self._starter.submit(service.start)

    def _owner(self, pid: int) -> Service | None:
        try:
            line = {pid, *(above.pid for above in psutil.Process(pid).parents())}
        except psutil.NoSuchProcess:
            return None
        for service in self.services:
            if service.process is not None and service.process.poll() is None and service.process.pid in line:
                return service
        return None


def _scheduler_of(server: int) -> int:
    """Return the scheduler beside a serving process; 0 where none lives."""
    try:
        for process in psutil.Process(server).children():
            if process.status() != psutil.STATUS_ZOMBIE and "tumbler_server.scheduler" in " ".join(process.cmdline()):
                return process.pid
    except psutil.NoSuchProcess:
        return 0
    return 0
