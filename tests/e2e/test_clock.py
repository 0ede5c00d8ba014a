"""A server on a machine with a wrong clock: what it leaves unchanged, and how an operator confirms the clock."""

import contextlib
import time
from pathlib import Path

import pytest

from tests.e2e.service import Service, eventually
from tests.e2e.test_commands import doctor
from tests.e2e.test_workers import logged
from tumbler_server.clock import DAY, SECOND
from tumbler_server.store.database import open_store

AHEAD = 500 * DAY

DOUBTED = "this machine's clock is 500.0 days ahead of the installation's last known time: "

# Python runs this at startup of the server's process and of all its children.
_WRONG = """
import os, time
_right = time.time_ns
time.time_ns = lambda: _right() + int(os.environ["TEST_CLOCK_AHEAD"]) * 1_000
"""


@pytest.fixture
def wrong_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Put the clock of all processes started from now on 500 days ahead, until the patch is undone."""
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "sitecustomize.py").write_text(_WRONG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "wrong"))
    monkeypatch.setenv("TEST_CLOCK_AHEAD", str(AHEAD))
    return monkeypatch


def doubts(service: Service) -> bool:
    """Return whether the log says that the clock is doubted."""
    return any(DOUBTED in line for line in service.stderr.splitlines())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_started_with_a_wrong_clock(installed: Service, workers: str, request: pytest.FixtureRequest) -> None:
    """A server whose clock is 500 days ahead removes and announces nothing, and records no use in the future.

    The log says so in one line, and so does the doctor. After `trust-clock` it announces what is due.
    It keeps the events even then: the clock may have been behind before.
    """
    installed.start()
    rotation = {"interval": {"seconds": 30 * 86_400}}
    keys = [installed.create(name=f"key {number}", rotation=rotation) for number in range(5)]
    for key in keys:  # The last event of each key is kept, however old it is.
        installed.set_active(key.api_key.id, False)
        installed.set_active(key.api_key.id, True)
    assert installed.stop() == 0
    events = installed.read("SELECT * FROM event ORDER BY revision")

    clock = request.getfixturevalue("wrong_clock")
    before = time.time()
    installed.start("--workers", workers)
    assert installed.verdict(keys[0].key) == "VALID"
    eventually(lambda: doubts(installed))
    eventually(lambda: logged(installed, "this process now acts on schedules"))
    assert installed.stop() == 0
    after = time.time()
    assert 1 <= len([line for line in installed.stderr.splitlines() if DOUBTED in line]) <= int(workers)
    assert not logged(installed, "removed the oldest events")
    code, findings = doctor(installed)
    assert (code, findings["clock"]["severity"]) == (0, "warning")
    assert findings["clock"]["found"].startswith("it is 500.0 days ahead of the installation's last known time")
    assert "tumbler-server trust-clock" in findings["clock"]["mend"]
    assert installed.read("SELECT * FROM event ORDER BY revision") == events
    ((used,),) = installed.read("SELECT last_used_time FROM api_key WHERE id = ?", keys[0].api_key.id)
    assert before - 60 <= used / SECOND <= after
    installed.audit()

    assert installed.command("trust-clock").returncode == 0
    code, findings = doctor(installed)
    assert findings["clock"]["severity"] == "ok"
    installed.start("--workers", workers)
    eventually(lambda: installed.read("SELECT * FROM event WHERE type = 7"))
    time.sleep(2)  # retention has run meanwhile
    assert installed.stop() == 0
    assert installed.read("SELECT * FROM event WHERE revision <= ? ORDER BY revision", len(events)) == events
    installed.audit()
    clock.undo()


@pytest.mark.parametrize("command", ["migrate", "operator-key", "serve"])
def test_a_wrong_clock_that_comes_first(installed: Service, command: str, request: pytest.FixtureRequest) -> None:
    """Where no server has noted the time yet, as after an upgrade, a wrong clock's own events do not make it right."""
    assert installed.command("operator-key").returncode == 0
    with contextlib.closing(open_store(installed.database_url)) as store:
        store.write_unserialized(lambda database: database.execute_sql("UPDATE clock SET time = 0"))
    events = installed.read("SELECT * FROM event ORDER BY revision")
    clock = request.getfixturevalue("wrong_clock")
    if command == "serve":
        installed.start()
        installed.create()
        eventually(lambda: doubts(installed))
        assert installed.stop() == 0
    else:
        assert installed.command(command).returncode == 0
        assert installed.command("operator-key").returncode == 0
        installed.start()
        eventually(lambda: doubts(installed))
        time.sleep(2)  # retention has run meanwhile
        assert installed.stop() == 0
    clock.undo()
    installed.start()
    time.sleep(2)
    assert installed.stop() == 0
    assert not logged(installed, "removed the oldest events")
    assert installed.read("SELECT * FROM event WHERE revision <= ? ORDER BY revision", len(events)) == events
    installed.audit()
