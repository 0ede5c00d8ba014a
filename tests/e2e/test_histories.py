"""Short histories, and proof that the longer ones of `make histories` can fail."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.service import Service
from tests.histories import cold_start, streams
from tests.histories.__main__ import plain, report
from tests.histories.counts import METRICS
from tests.histories.modes import MODES, run
from tests.histories.scene import Scene
from tumbler_server.clock import NEVER, SECOND, system_clock
from tumbler_server.events.log import EventType

BY_NAME = {mode.name: mode for mode in MODES}


@pytest.mark.parametrize("name", ["sqlite-workers", "postgresql-servers"])
def test_a_short_history(name: str, new_database: Callable[[str], str], tmp_path: Path) -> None:
    """While 100 keys are revoked under constant calls, no server and no worker accepts one for longer than it may."""
    mode = replace(BY_NAME[name], revokes=100)
    done = run(mode, tmp_path, new_database(mode.dialect))
    # On a busy machine, PostgreSQL sometimes stalls for seconds. Those calls fail with UNAVAILABLE and accept no key.
    assert [text for text in done.findings.examples if "UNAVAILABLE" not in text] == []
    assert done.problems == []
    assert done.findings.revokes == 100
    told = plain(done)
    assert told["of_these_valid"].get("A", 0) == told["of_these_demanding_valid"] == 0
    assert min(told["begun_after_revoke"].values()) > 100
    assert told["demanding_begun_after_revoke"] > 25
    assert report([done]).row_count == 1


def test_a_key_that_comes_back_is_noticed(tmp_path: Path) -> None:
    """A history reports a server that accepts revoked keys again."""
    # A server refuses a key whose row differs from its event, so clear the record of the event. But a worker that finds
    # a changed event at the end of the log ends the server: so only of events that all workers have long read.
    undoing = (
        "UPDATE event SET record = NULL "  # noqa: S608 - likewise
        f"WHERE type = {EventType.REVOKED:d} AND record IS NOT NULL AND time < {{long_ago}}",
        f"UPDATE api_key SET revoke_time = {NEVER} WHERE revoke_time <> {NEVER} "  # noqa: S608 - no input in either
        "AND revision IN (SELECT revision FROM event WHERE record IS NULL)",
    )

    def undo(scene: Scene, over: threading.Event) -> Counter[str]:
        while not over.wait(0.05):
            long_ago = system_clock() - 2 * SECOND
            scene.servers["A"].tamper(*(statement.format(long_ago=long_ago) for statement in undoing))
        return Counter(undone=1)

    broken = replace(BY_NAME["sqlite-workers"], revokes=12, rate=2, options=("--cache-size", "1"), fault=undo)
    done = run(broken, tmp_path)
    assert done.findings.stale["A"] > 0
    assert done.findings.violations >= done.findings.stale["A"]
    assert any("begun" in text and "after the revocation returned" in text for text in done.findings.examples)
    assert any("was changed, or the one before it was" in text for text in done.problems)


@pytest.mark.slow
def test_a_short_cold_start(tmp_path: Path) -> None:
    """A cold server verifies all keys without bcrypt if it has the pepper, and with one bcrypt run per key if not."""
    with_pepper, without = cold_start.run(tmp_path, number=100, cost=6, seconds=1.0, postgresql=None)
    assert with_pepper.problems == without.problems == []
    assert (with_pepper.bcrypt_runs, without.bcrypt_runs) == (0, 100)
    assert without.crowd.refused > 0
    assert cold_start.table([with_pepper, without]).row_count == 2


@pytest.mark.slow
def test_a_few_streams(embedded: Service) -> None:
    """A hundred streams stay open while keys are verified, and of a hundred cancelled streams none remains."""
    done = streams.run(embedded.start(*METRICS), streams=100, cancelled=100, seconds=1.0)
    # Latency says nothing while other tests run.
    assert [problem for problem in done.problems if "p99" not in problem] == []
    assert streams.table(done).row_count == 3
