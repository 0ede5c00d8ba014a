"""Faults that are injected into an installation during a history. Each repeats until stopped, and repairs everything.

A fault returns counts of its actions, since a fault that never struck shows nothing.
"""

import signal
import threading
from collections import Counter
from collections.abc import Callable

from tests.histories.scene import OTHER, Scene

MAX_STALENESS = 2.0
"""The default of ``--max-staleness``, in seconds, with which all servers here run."""

Fault = Callable[[Scene, threading.Event], Counter[str]]

_KILLED = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s"


def listener_killed(scene: Scene, over: threading.Event) -> Counter[str]:
    """Kill, in turn, the listening connection of the other server, and all of its connections."""
    assert scene.postgresql is not None
    done: Counter[str] = Counter()
    while not over.wait(0.25):
        done["listeners killed"] += len(scene.postgresql.run(f"{_KILLED} AND query LIKE 'LISTEN%%'", OTHER))
        if not over.wait(0.75):
            done["connections killed"] += len(scene.postgresql.run(_KILLED, OTHER))
    return done


def stopped(scene: Scene, over: threading.Event) -> Counter[str]:
    """Stop the other server for longer than an answer may lag, and continue it, again and again."""
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
    """Crash the database and restart it. Every other time it is away for longer than an answer may lag."""
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
