"""The processes of a server, found and killed by SIGKILL without warning, as by a power cut or the kernel."""

import contextlib
import random
import threading
import time

import psutil

from tests.e2e.service import Service, eventually
from tests.rotations.crew import Crew

LONGEST_RESTART = 60.0
"""Seconds within which a killed process must be replaced. A worker that keeps dying young is restarted with a delay."""

KINDS = ("server", "worker", "scheduler")

_LONGEST_REST = 0.3
"""Most seconds from when a process can be killed until it is."""
_AIMED = 0.5
"""The share of kills that come just after a call has begun, at most ``_LONGEST_CALL`` seconds later."""
_LONGEST_CALL = 0.02


class Victims:
    """The processes of a server that can be killed. The server may be restarted in between.

    ``calling`` is set at the beginning of each call, and cleared here to wait for the next one.
    """

    def __init__(self, service: Service, crew: Crew, chance: random.Random, calling: threading.Event) -> None:
        self._service = service
        self._crew = crew
        self._chance = chance
        self._calling = calling
        self._term = 0
        self._remains: list[psutil.Process] = []

    def strike(self, kind: str, workers: int) -> None:
        """Kill a process of a kind as soon as it does its work, or a little later. The server has ``workers`` workers.

        Raises ``NobodyActs`` if no scheduler acts, and ``AssertionError`` if a worker is not replaced.
        """
        while True:
            pid = self._ready(kind, workers)
            time.sleep(self._chance.uniform(0, _LONGEST_REST))
            if self._chance.random() < _AIMED:
                self._calling.clear()
                self._calling.wait(_LONGEST_REST)
                time.sleep(self._chance.uniform(0, _LONGEST_CALL))
            if self._kill(kind, pid):
                return

    def _ready(self, kind: str, workers: int) -> int:
        if kind == "scheduler":
            acting = self._crew.wait_for_acting(self._term)
            self._term = acting.term
            return acting.pid
        if kind == "worker":
            serving = eventually(lambda: found if len(found := self._serving()) == workers else None, LONGEST_RESTART)
            assert serving is not None
            return self._chance.choice(serving)
        assert self._service.process is not None
        return self._service.process.pid

    def _kill(self, kind: str, pid: int) -> bool:
        """Kill a process; of a server, either only the first process or all at once. Return False if it had ended."""
        try:
            process = psutil.Process(pid)
            below = process.children(recursive=True) if kind == "server" else []
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            process.kill()
        except psutil.NoSuchProcess:  # a scheduler ends with the worker that it belongs to
            return False
        if kind == "server":
            if self._chance.random() < 0.5:
                for each in below:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
            self._remains = [each for each in (*self._remains, *below) if _lives(each)]
            self._service.wait()
        return True

    def outlived(self, patience: float) -> int:
        """Return how many processes still run ``patience`` seconds after their server was killed."""
        psutil.wait_procs(self._remains, patience)
        return sum(map(_lives, self._remains))

    def _serving(self) -> list[int]:
        """Return the workers that listen."""
        assert self._service.process is not None
        port = int(self._service.target.rpartition(":")[2])
        found = []
        for process in psutil.Process(self._service.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(
                    each.laddr.port == port and each.status == psutil.CONN_LISTEN
                    for each in process.net_connections("tcp")
                ):
                    found.append(process.pid)
        return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
