"""Child processes: their signals, their end, and their replacement."""

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
    """SIGHUP stops a server, unless it was ignored at the start, as under nohup."""
    asked = (
        "import signal; signal.signal(signal.SIGHUP, signal.{}); from tumbler_server.processes import ENDING; print({})"
    )
    told = subprocess.check_output([sys.executable, "-c", asked.format(handler, "signal.SIGHUP in ENDING")], text=True)
    assert told.strip() == str(handler == "SIG_DFL")


def test_signals_that_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal is a second request only if it comes some time after the first."""
    moments = iter((100.0, 100.001, 100.0 + TOGETHER - 0.1, 100.0 + TOGETHER, 130.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    told = Ending()
    asked = [told.again() for _ in range(4)]
    assert asked == [False, False, True, True]


class TestPatience:
    """The pause before a process is started again."""

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
        """The first restart is immediate; while the process keeps dying young, the pause doubles up to 30 s."""
        patience = Patience()
        assert [patience.after(lived) for lived in lives] == pauses

    def test_for_days(self) -> None:
        """A process that has died at each start for days is still restarted."""
        patience = Patience()
        assert [patience.after(0) for _ in range(10_000)][-1] == LONGEST_PAUSE


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Return the file in which a test's processes record what they do."""
    return tmp_path / "notes"


@pytest.fixture
def keep(notes: Path) -> Callable[[str], AbstractContextManager[None]]:
    """Return a function that keeps a process with a certain behaviour (``child``) running."""
    return lambda behaviour: kept("child", lambda: Process(child.__name__, (str(notes), behaviour), os.environ))


Keep = Callable[[str], AbstractContextManager[None]]


def pids(notes: Path, done: str) -> list[int]:
    """Return the ids of the processes that recorded this, in order."""
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [int(pid) for what, pid in map(str.split, lines) if what == done]


class TestKept:
    """A process that is kept running beside its parent."""

    def test_ends_with_the_context(self, keep: Keep, notes: Path) -> None:
        """The process starts, stops when the context ends, and nothing is logged."""
        with capture_logs() as logs, keep("obedient"):
            (pid,) = eventually(lambda: pids(notes, "ready"))
            assert pids(notes, "ended") == []
        assert pids(notes, "ended") == [pid]
        assert not alive(pid)
        assert [line for line in logs if line["log_level"] != "debug"] == []

    def test_replaced(self, keep: Keep, notes: Path) -> None:
        """If the process is killed, that is logged, and another starts at once."""
        with capture_logs() as logs, keep("obedient"):
            (first,) = eventually(lambda: pids(notes, "ready"))
            os.kill(first, signal.SIGKILL)
            second = eventually(lambda: pids(notes, "ready")[1:])[0]
            assert second != first
        assert pids(notes, "ended") == [second]
        (line,) = [line for line in logs if line["log_level"] == "warning"]
        assert (line["event"], line["end"], line["restart_in"]) == ("the child ended", "signal 9 (Killed)", 0)

    def test_says_why(self, keep: Keep, notes: Path) -> None:
        """A process that cannot work reports why, and is restarted after growing pauses."""
        with capture_logs() as logs, keep("useless"):
            eventually(lambda: len(pids(notes, "began")) > 1)
            eventually(lambda: len(logs) > 1)
        told = [(line["end"], line["reason"], line["restart_in"]) for line in logs[:2]]
        assert told == [("exit code 3", "no use", 0), ("exit code 3", "no use", 1)]

    @pytest.mark.parametrize("number", sorted(ENDING))
    def test_signals(self, keep: Keep, notes: Path, number: signal.Signals) -> None:
        """A signal to the whole group, such as Ctrl-C, does not end the process: its parent does."""
        with capture_logs() as logs, keep("obedient"):
            (pid,) = eventually(lambda: pids(notes, "ready"))
            os.kill(pid, number)
            time.sleep(0.2)
            assert alive(pid)
        assert pids(notes, "ended") == [pid]
        assert [line for line in logs if line["log_level"] != "debug"] == []

    def test_killed_when_it_does_not_end(self, keep: Keep, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that does not stop in time is killed, so it does not delay the server's exit."""
        monkeypatch.setattr(processes, "_ENOUGH", 0.2)
        with keep("stubborn"):
            (pid,) = eventually(lambda: pids(notes, "ready"))
        assert not alive(pid)
        assert pids(notes, "ended") == []

    def test_in_a_hurry(self, keep: Keep, notes: Path) -> None:
        """If the parent gives up, it does not wait for the process."""

        def give_up() -> None:
            with keep("stubborn"):
                eventually(lambda: pids(notes, "ready"))
                raise SystemExit

        with pytest.raises(SystemExit):
            give_up()
        assert not alive(pids(notes, "ready")[0])

    def test_ended_as_it_begins(self, keep: Keep, notes: Path) -> None:
        """A process that has not started its work is not waited for."""
        with keep("slow"):
            (pid,) = eventually(lambda: pids(notes, "began"))
        assert not alive(pid)
        assert pids(notes, "ended") == []

    def test_no_room(self) -> None:
        """If the system cannot start a process, that is logged, and the start is retried."""

        def start() -> Process:
            raise OSError(11, "Resource temporarily unavailable")

        with capture_logs() as logs, kept("child", start):
            eventually(lambda: len(logs) > 1)
        assert "Resource temporarily unavailable" in logs[0]["end"]
        assert [line["restart_in"] for line in logs[:2]] == [0, 1]
