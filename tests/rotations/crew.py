"""The servers of a run, the one of their schedulers that acts, and how it is killed."""

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
"""Seconds within which a scheduler must act again, whatever was killed."""

_LOOK = 0.005
"""Seconds between two looks at the database."""


class Acting(NamedTuple):
    """The scheduler that holds the lease, and the lease's term."""

    pid: int
    term: int


class NobodyActs(Exception):
    """No scheduler took the lease in time."""


class Crew:
    """The servers on one database. ``strike`` restarts those that it kills, at other addresses."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = tuple(services)
        self.store: Store = open_store(services[0].database_url)
        """The database, accessed without the servers."""
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
        """Return the servers' addresses. A server that is being restarted has its old one."""
        return [service.target for service in self.services]

    def wait_for_restarts(self) -> None:
        """Wait until all killed servers serve again. Raises the error of one that fails to start."""
        for restart in self._restarts.values():
            restart.result()

    def acting(self) -> Acting | None:
        """Return the acting scheduler, or None if no living scheduler holds the lease."""
        ((holder, term),) = self.store.read("SELECT holder, term FROM lease WHERE id = 1")
        pid = _scheduler_of(int(holder.split("/")[1])) if holder else 0
        return Acting(pid, int(term)) if pid and self._owner(pid) else None

    def wait_for_acting(self, after: int = 0, patience: float = LONGEST_TAKEOVER) -> Acting:
        """Wait until a scheduler acts for a later term than ``after``. Raises ``NobodyActs``."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            ((term,),) = self.store.read("SELECT term FROM lease WHERE id = 1")
            if term > after and (acting := self.acting()):
                return acting
            time.sleep(_LOOK)
        raise NobodyActs

    def strike(self, acting: Acting) -> tuple[str, float]:
        """Kill the acting scheduler or its server, like a power cut, and make sure that it is restarted.

        Returns what was killed, and when by the monotonic clock. In turn this is only the ``scheduler``, which its
        server replaces; the ``worker`` that it belongs to, if there are workers, which the supervisor replaces; and the
        whole ``server`` if another runs, or ``all`` if none does. A server that is being restarted is waited for first:
        if it cannot start, that is another failure.
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
        """Return the server that a scheduler belongs to, or None if that does not run."""
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
    """Return the pid of the scheduler of a serving process, or 0 if none is alive."""
    try:
        for process in psutil.Process(server).children():
            if process.status() != psutil.STATUS_ZOMBIE and "tumbler_server.scheduler" in " ".join(process.cmdline()):
                return process.pid
    except psutil.NoSuchProcess:
        return 0
    return 0
