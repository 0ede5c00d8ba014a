"""The scheduler, a process beside the server: its lifetime and its metrics."""

import os
import re
import signal
from collections import Counter

import apsw
import pytest

from tests.e2e.service import Service, alive, eventually, seconds
from tests.e2e.test_workers import counted, logged, pids, schedulers, scraped, the_scheduler

DUE = 'tumbler_alarms_total{type="rotation_due"}'

ROTATING = ("--min-rotation-interval", "1s", "--metrics-listen", "127.0.0.1:0")


@pytest.mark.parametrize("workers", ["1", "3"])
def test_one_beside_a_server(embedded: Service, workers: str) -> None:
    """A server has one scheduler, however many workers it has, and it exits cleanly with the server."""
    embedded.start("--workers", workers)
    pid = the_scheduler(embedded)
    eventually(lambda: "this process now acts on schedules" in embedded.stderr)
    assert schedulers(embedded) == [pid]
    assert embedded.stop() == 0
    assert not alive(pid)
    assert embedded.read("SELECT holder FROM lease") == [("",)], "the lease is left to whoever comes next"
    assert not logged(embedded, "the scheduler ended")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ends_with_a_killed_server(embedded: Service, workers: str) -> None:
    """A scheduler exits when its server is killed."""
    embedded.start("--workers", workers)
    pid = the_scheduler(embedded)
    embedded.signal(signal.SIGKILL)
    embedded.wait()
    eventually(lambda: not alive(pid))


def test_follows_its_worker(embedded: Service) -> None:
    """If the scheduler's worker is killed, the new worker starts a new scheduler."""
    embedded.start("--workers", "2")
    before = the_scheduler(embedded)
    os.kill(pids(embedded)[1], signal.SIGKILL)
    eventually(lambda: not alive(before))
    eventually(lambda: [pid for pid in schedulers(embedded) if pid != before])


def test_ctrl_c(embedded: Service) -> None:
    """Ctrl-C, which a terminal also sends to the scheduler, stops the server cleanly and restarts no scheduler."""
    embedded.start()
    pid = the_scheduler(embedded)
    eventually(lambda: "this process now acts on schedules" in embedded.stderr)
    os.kill(pid, signal.SIGINT)
    embedded.signal(signal.SIGINT)
    assert embedded.wait() == 0
    assert not alive(pid)
    assert not logged(embedded, "the scheduler ended")
    assert "Traceback" not in embedded.stderr


def test_verifying_does_not_need_it(embedded: Service) -> None:
    """While the scheduler is stopped, keys can be created and verified."""
    embedded.start()
    pid = the_scheduler(embedded)
    eventually(lambda: "this process now acts on schedules" in embedded.stderr)
    eventually(lambda: _stopped_outside_a_transaction(embedded, pid))
    assert embedded.verdict(embedded.create().key) == "VALID"
    assert embedded.stop() == 0, "though it could not end in order"
    assert not alive(pid)


def _stopped_outside_a_transaction(service: Service, pid: int) -> bool:
    os.kill(pid, signal.SIGSTOP)
    probe = apsw.Connection(service.database_url.removeprefix("sqlite:///"))
    probe.set_busy_timeout(500)  # milliseconds, in case another process writes
    try:
        probe.execute("BEGIN IMMEDIATE; ROLLBACK")
    except apsw.BusyError:
        os.kill(pid, signal.SIGCONT)
        return False
    finally:
        probe.close()
    return True


@pytest.mark.parametrize("workers", ["1", "2"])
def test_counts(embedded: Service, workers: str) -> None:
    """The metrics include those of schedulers, dead ones too, and each sample once."""
    embedded.start("--workers", workers, *ROTATING)
    embedded.create(name="rotating", rotation={"interval": seconds(1)})
    eventually(lambda: counted(embedded).get(DUE) == 1)
    os.kill(the_scheduler(embedded), signal.SIGKILL)
    embedded.create(name="rotating too", rotation={"interval": seconds(1)})
    eventually(lambda: counted(embedded).get(DUE) == 2)
    text = scraped(embedded)
    for what in (r"# TYPE \S+", r"[^#].*(?= )"):  # families, and samples with their labels
        times = Counter(re.findall(f"^{what}", text, re.MULTILINE))
        assert times
        assert max(times.values()) == 1
