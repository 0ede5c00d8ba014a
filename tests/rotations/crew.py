"""The servers of a run, the one process of theirs that acts, and its violent end."""

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

_WHOLE = 5
"""A server of several workers is ended as a whole each so many times: a worker that keeps dying is kept waiting."""


class Acting(NamedTuple):
    """The process that holds the lease, and the term that it holds it for."""

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
        pid = int(holder.split("/")[1]) if holder else 0
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
        """End the process that acts, as a power cut would, and see that it is started again.

        Returns what was ended, a ``worker``, a ``server`` beside which another runs, or ``all`` that ran, and when, by
        the monotonic clock.

        Of a server with workers it is one of these, which its supervisor replaces; now and then the whole server. One
        that is being started is waited for: if it cannot start, that is another failure.
        """
        service = self._owner(acting.pid)
        assert service is not None
        assert service.process is not None
        if service in self._restarts:
            self._restarts[service].result()
        self._struck += 1
        killed = time.monotonic()
        if service.process.pid == acting.pid:
            others = [restart for other, restart in self._restarts.items() if other is not service]
            alone = not all(restart.done() for restart in others)
            self._end(service)
            return "all" if alone else "server", killed
        if self._struck % _WHOLE:
            os.kill(acting.pid, signal.SIGKILL)
            return "worker", killed
        self._end(service)
        return "all", killed

    def _end(self, service: Service) -> None:
        assert service.process is not None
        workers = psutil.Process(service.process.pid).children()
        service.process.kill()
        for worker in workers:
            worker.kill()
        service.process.wait()
        psutil.wait_procs(workers, 10)
        self._restarts[service] = self._starter.submit(service.start)

    def _owner(self, pid: int) -> Service | None:
        try:
            above = psutil.Process(pid).ppid()
        except psutil.NoSuchProcess:
            return None
        for service in self.services:
            if service.process is not None and service.process.poll() is None and service.process.pid in (pid, above):
                return service
        return None
