"""What is done to an installation while a history is made. Each goes on until it is told to stop, and mends all.

A fault returns how often it did what: one that never struck has shown nothing.
"""

import signal
import threading
from collections import Counter
from collections.abc import Callable

from tests.histories.scene import OTHER, Scene

MAX_STALENESS = 2.0
"""Seconds: the default of ``--max-staleness``, which all servers here run with."""

Fault = Callable[[Scene, threading.Event], Counter[str]]

_KILLED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"


def listener_killed(scene: Scene, over: threading.Event) -> Counter[str]:
    """End, in turn, the connection by which the other server is woken, and all connections it has."""
    assert scene.postgresql is not None
    done: Counter[str] = Counter()
    while not over.wait(0.25):
        done["listeners killed"] += len(scene.postgresql.run(f"{_KILLED} AND query LIKE 'LISTEN%%'", OTHER))
        if not over.wait(0.75):
            done["connections killed"] += len(scene.postgresql.run(_KILLED, OTHER))
    return done


def stopped(scene: Scene, over: threading.Event) -> Counter[str]:
    """Let the other server stand still for longer than an answer may lag, and go on, again and again."""
    done: Counter[str] = Counter()
    while not over.wait(MAX_STALENESS):
        scene.servers["B"].signal(signal.SIGSTOP)
        try:
            over.wait(2 * MAX_STALENESS)
        finally:
            scene.servers["B"].signal(signal.SIGCONT)
        done["stops"] += 1
    return done


def database_down(scene: Scene, over: threading.Event) -> Counter[str]:
    """Crash the database and start it again; every other time it is away for longer than an answer may lag."""
    assert scene.postgresql is not None
    done: Counter[str] = Counter()
    while not over.wait(MAX_STALENESS):
        scene.postgresql.stop()
        try:
            over.wait((0.5, 1.5)[done["crashes"] % 2] * MAX_STALENESS)
        finally:
            scene.postgresql.start()
        done["crashes"] += 1
    return done
