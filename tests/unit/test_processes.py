"""Processes that we start: what they are told, how they end, and what becomes of their places."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.e2e.service import alive, eventually
from tests.unit import child
from tumbler_server import processes
from tumbler_server.processes import ENDING, LONGEST_PAUSE, TOGETHER, YOUNG, Ending, Patience, Process, kept

OLD = YOUNG + 1


@pytest.mark.parametrize("handler", ["SIG_DFL", "SIG_IGN"])
def test_a_terminal_that_goes_ends_a_server_unless_it_is_to_outlive_it(handler: str) -> None:
    """SIGHUP ends a server in order; where it was to be ignored at the beginning, as by nohup, it is."""
    asked = (
        "import signal; signal.signal(signal.SIGHUP, signal.{}); from tumbler_server.processes import ENDING; print({})"
    )
    told = subprocess.check_output([sys.executable, "-c", asked.format(handler, "signal.SIGHUP in ENDING")], text=True)
    assert told.strip() == str(handler == "SIG_DFL")


def test_signals_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal is a second request only when it comes some time after the first."""
    moments = iter((100.0, 100.001, 100.0 + TOGETHER - 0.1, 100.0 + TOGETHER, 130.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    told = Ending()
    asked = [told.again() for _ in range(4)]
    assert asked == [False, False, True, True]


class TestPatience:
    """How long it waits before it starts a worker again."""

    @pytest.mark.parametrize(
        ("lives", "pauses"),
        [
            ([0], [0]),
            ([OLD], [0]),
            ([OLD, OLD, OLD], [0, 0, 0]),
            ([0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 4, 8, 16, 30, 30]),
            ([YOUNG - 1, YOUNG - 1], [0, 1]),
            ([0, 0, 0, OLD], [0, 1, 2, 0]),
            ([0, 0, 0, OLD, 0, 0], [0, 1, 2, 0, 1, 2]),
        ],
    )
    def test_pauses(self, lives: Sequence[float], pauses: Sequence[float]) -> None:
        """The first time at once; then, while it keeps dying young, after a pause that doubles up to 30 s."""
        patience = Patience()
        assert [patience.after(lived) for lived in lives] == pauses

    def test_for_days(self) -> None:
        """A process that dies at each start for days is still started again."""
        patience = Patience()
        assert [patience.after(0) for _ in range(10_000)][-1] == LONGEST_PAUSE


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Give the file to which the processes of a test write what they do."""
    return tmp_path / "notes"


@pytest.fixture
def keep(notes: Path) -> Callable[[str], AbstractContextManager[None]]:
    """Give a function that keeps a process which behaves in a certain way (``child``)."""
    return lambda behaviour: kept("child", lambda: Process(child.__name__, (str(notes), behaviour), os.environ))


Keep = Callable[[str], AbstractContextManager[None]]


def pids(notes: Path, done: str) -> list[int]:
    """Return the processes that noted something, in order."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [int(pid) for what, pid in map(str.split, lines) if what == done]


class TestKept:
    """A process that is kept beside ours."""

    def test_ends_with_the_context(self, keep: Keep, notes: Path) -> None:
        """It takes up its job, and ends in order when it is let go; nothing is logged of that."""
        with capture_logs() as logs, keep("obedient"):
            (pid,) = eventually(lambda: pids(notes, "ready"))
            assert pids(notes, "ended") == []
        assert pids(notes, "ended") == [pid]
        assert not alive(pid)
        assert [line for line in logs if line["log_level"] != "debug"] == []

    def test_replaced(self, keep: Keep, notes: Path) -> None:
        """When it is killed, the log says so, and another takes its place at once."""
        with capture_logs() as logs, keep("obedient"):
            (first,) = eventually(lambda: pids(notes, "ready"))
            os.kill(first, signal.SIGKILL)
            second = eventually(lambda: pids(notes, "ready")[1:])[0]
            assert second != first
        assert pids(notes, "ended") == [second]
        (line,) = [line for line in logs if line["log_level"] == "warning"]
        assert (line["event"], line["end"], line["restart_in"]) == ("the child ended", "signal 9 (Killed)", 0)

    def test_says_why(self, keep: Keep, notes: Path) -> None:
        """One that cannot do its work says why, and is tried again, each time later; its end is not waited for."""
        with capture_logs() as logs, keep("useless"):
            eventually(lambda: len(pids(notes, "began")) > 1)
            eventually(lambda: len(logs) > 1)
        told = [(line["end"], line["reason"], line["restart_in"]) for line in logs[:2]]
        assert told == [("exit code 3", "no use", 0), ("exit code 3", "no use", 1)]

    @pytest.mark.parametrize("number", sorted(ENDING))
    def test_signals(self, keep: Keep, notes: Path, number: signal.Signals) -> None:
        """A signal that reaches the whole group, as Ctrl-C does, leaves its end to its parent."""
        with capture_logs() as logs, keep("obedient"):
            (pid,) = eventually(lambda: pids(notes, "ready"))
            os.kill(pid, number)
            time.sleep(0.2)
            assert alive(pid)
        assert pids(notes, "ended") == [pid]
        assert [line for line in logs if line["log_level"] != "debug"] == []

    def test_killed_when_it_does_not_end(self, keep: Keep, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that does not end in time is killed: a server's end is not held up by it."""
        monkeypatch.setattr(processes, "_ENOUGH", 0.2)
        with keep("stubborn"):
            (pid,) = eventually(lambda: pids(notes, "ready"))
        assert not alive(pid)
        assert pids(notes, "ended") == []

    def test_in_a_hurry(self, keep: Keep, notes: Path) -> None:
        """Where its parent gives up, it is not waited for at all."""

        def give_up() -> None:
            with keep("stubborn"):
                eventually(lambda: pids(notes, "ready"))
                raise SystemExit

        with pytest.raises(SystemExit):
            give_up()
        assert not alive(pids(notes, "ready")[0])

    def test_ended_as_it_begins(self, keep: Keep, notes: Path) -> None:
        """One that has not begun its work is not waited for."""
        with keep("slow"):
            (pid,) = eventually(lambda: pids(notes, "began"))
        assert not alive(pid)
        assert pids(notes, "ended") == []

    def test_no_room(self) -> None:
        """Where the system has no room for a process, the log says so, and it is tried again."""

        def start() -> Process:
            raise OSError(11, "Resource temporarily unavailable")

        with capture_logs() as logs, kept("child", start):
            eventually(lambda: len(logs) > 1)
        assert "Resource temporarily unavailable" in logs[0]["end"]
        assert [line["restart_in"] for line in logs[:2]] == [0, 1]
