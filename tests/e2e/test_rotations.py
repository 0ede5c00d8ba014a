"""Rotations by real servers: takeover when the acting scheduler is killed, stopped or shut down."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.service import Service, eventually, seconds
from tests.histories.scene import memory
from tests.rotations import due
from tests.rotations.crew import LONGEST_TAKEOVER, Crew
from tests.rotations.kills import plain, report, run, takeovers
from tumbler_server.events.log import EventType

Pair = Callable[..., Crew]

DEFAULT_LEASE = 15.0
"""Seconds: the default of ``--scheduler-lease``."""


@pytest.fixture
def pair(tmp_path: Path, new_database: Callable[[str], str]) -> Iterator[Pair]:
    """Return a function that starts two servers on one PostgreSQL database, with options."""
    with ExitStack() as open_:

        def start(*options: str) -> Crew:
            service = Service(
                tmp_path / "data", new_database("postgresql"), ("--min-rotation-interval", "1s", *options)
            )
            open_.callback(service.close)
            service.init().start()
            return open_.enter_context(Crew([service, service.beside()]))

        yield start


def apart(crew: Crew) -> tuple[Service, Service]:
    """Return the server whose scheduler acts, and the other one."""
    acting = crew.owner(crew.wait_for_acting())
    first, second = crew.services
    return (first, second) if first is acting else (second, first)


def soon_due(server: Service, count: int = 1) -> list[str]:
    """Create keys whose rotations are due in a second, and return their IDs."""
    return [
        server.create(name=f"key {number}", rotation={"interval": seconds(1)}).api_key.id for number in range(count)
    ]


def announced(crew: Crew) -> list[str]:
    """Return the keys with announced rotations, in order. A rotation that was announced twice is there twice."""
    rows = crew.store.read("SELECT key_id FROM event WHERE type = ? ORDER BY revision", (int(EventType.ROTATION_DUE),))
    return [key_id for (key_id,) in rows]


def stand_still(pid: int, server: Service) -> None:
    """Stop a process at a moment when it holds no lock in the server's database."""
    busy = (
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend' AND state <> 'idle'"
    )

    def stopped() -> bool:
        os.kill(pid, signal.SIGSTOP)
        for _ in range(10):
            if not server.read(busy):
                return True
            time.sleep(0.02)  # other clients' transactions end soon
        os.kill(pid, signal.SIGCONT)
        return False

    eventually(stopped)


class TestTakeover:
    """One scheduler acts, and when it dies, another takes over its work."""

    def test_killed(self, pair: Pair) -> None:
        """With the default lease, due rotations are announced within 30 s after the acting server was killed."""
        crew = pair()
        acting, other = apart(crew)
        acting.signal(signal.SIGKILL)
        acting.wait()
        key_ids = soon_due(other)
        assert announced(crew) == []
        eventually(lambda: announced(crew) == key_ids, LONGEST_TAKEOVER)

    def test_scheduler_killed(self, pair: Pair) -> None:
        """A server restarts its dead scheduler, which resumes without waiting for the lease to expire."""
        crew = pair()
        scheduler = crew.wait_for_acting()
        acting = crew.owner(scheduler)
        assert acting is not None
        os.kill(scheduler.pid, signal.SIGKILL)
        key_ids = soon_due(acting)
        eventually(lambda: announced(crew) == key_ids, DEFAULT_LEASE / 2)
        assert crew.owner(crew.wait_for_acting(scheduler.term)) is acting
        assert "the scheduler ended" in acting.stderr

    def test_ended_in_order(self, pair: Pair) -> None:
        """A server that shuts down cleanly releases the lease, so that another takes over at once."""
        crew = pair()
        acting, other = apart(crew)
        assert acting.stop() == 0
        key_ids = soon_due(other)
        eventually(lambda: announced(crew) == key_ids, DEFAULT_LEASE / 2)

    def test_stopped_and_continued(self, pair: Pair) -> None:
        """A scheduler that was stopped beyond its lease yields to the new one, and each rotation is announced once."""
        crew = pair("--scheduler-lease", "1s")
        acting, other = apart(crew)
        scheduler = crew.wait_for_acting()
        key_ids = soon_due(acting, 20)
        stand_still(scheduler.pid, other)
        try:
            taken_over = crew.wait_for_acting(scheduler.term)
            key_ids += soon_due(other, 20)
            eventually(lambda: set(announced(crew)) == set(key_ids))
        finally:
            os.kill(scheduler.pid, signal.SIGCONT)
        eventually(lambda: "another process now acts on schedules" in acting.stderr)
        key_ids += soon_due(acting, 5)
        eventually(lambda: set(announced(crew)) >= set(key_ids))
        assert sorted(announced(crew)) == sorted(key_ids)
        assert crew.acting() == taken_over
        other.audit()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_few_kills(kind: str, new_database: Callable[[str], str]) -> None:
    """Whatever is killed, and when, each rotation is announced, delivered and claimed once."""
    with memory() as folder:
        done = run(kind, folder, new_database(kind) if kind == "postgresql" else "", kills=2, keys=20, seed=1)
    assert done.findings.examples == []
    assert done.problems == []
    assert plain(done)["kills"] == 2
    assert report([done]).row_count == 1
    assert takeovers([done]).row_count == len(done.gaps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_many_due(kind: str, new_database: Callable[[str], str], tmp_path: Path) -> None:
    """Many rotations that fall due together are each announced and delivered once, and every Verify stays correct."""
    url = new_database(kind) if kind == "postgresql" else ""
    done = due.run(kind, True, tmp_path, url, keys=300, spell=1.0, progress=lambda _: None)
    assert done.problems == []
    assert set(done.verified) - {"telling"} == {"before", "announcing", "paused", "after"}
    assert due.report([done]).row_count == len(done.verified)
