"""Processes that we start: new ones, not forks, so that nothing is shared by accident, and none outlives its parent.

Two pipes join a process to its parent: it ends when that to its stdin closes, and is known to have ended when that from
its stdout does. What it is to do is told by the first, since a database's URL can hold a password, and a command line
is for all to read.
"""

import atexit
import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import structlog

_GONE = {signal.SIGHUP} if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else set()

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, *_GONE})
"""The signals that end a server in order: that its terminal has gone, too, unless it was begun with nohup."""

READY = b"ready"
"""What a process tells its parent as soon as it does its work. Anything else is why it does not."""

LOST = 4
"""The exit code of a process whose database has become another one: none may take its place."""

YOUNG = 30.0
"""Seconds; a process that lives longer is none that keeps dying."""

LONGEST_PAUSE = 30.0
"""Seconds; the longest wait before a process is started again."""

TOGETHER = 1.0
"""Seconds; signals to end that come within it are one request: `timeout` signals its child, and then its group."""

_ENOUGH = 5.0
"""Seconds that a process which was told to end may take for it."""

# With the path that we have: `-m` would put the present folder first, and whatever lies in it.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"

_log = structlog.get_logger(__name__)


class Process:
    """A process that runs ``main`` of a module, which takes up the ``job``.

    Raises ``OSError`` where the system has no room for one.
    """

    def __init__(self, module: str, job: object, environment: Mapping[str, str], files: Sequence[int] = ()) -> None:
        self.began = time.monotonic()
        told, self._lifeline = os.pipe()
        self.report, telling = os.pipe()
        # Inherited: a signal to the whole group must wait until the process can end in order.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-c", _PROGRAM.format(path=sys.path, module=module)],
                stdin=told,
                stdout=telling,
                env=environment,
                pass_fds=files,
            )
        except OSError:
            self._close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(told)
            os.close(telling)
        with contextlib.suppress(BrokenPipeError), open(self._lifeline, "wb", closefd=False) as pipe:
            pickle.dump(job, pipe)

    @property
    def pid(self) -> int:
        """Return the process's number."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def release(self) -> None:
        """Let it end, in order."""
        os.close(self._lifeline)
        self._lifeline = -1

    def bury(self) -> int:
        """Take leave of a process that has ended, and return its exit code: below zero, the signal that ended it."""
        code = self._process.wait()
        self._close()
        return code

    def _close(self) -> None:
        if self._lifeline >= 0:
            self.release()
        os.close(self.report)


def explain_end(code: int) -> str:
    """Return in words how a process ended."""
    return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"


class Ending:
    """A server that has been told to end, just now."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def again(self) -> bool:
        """Return whether a signal that comes now is a second request: to end at once."""
        return time.monotonic() - self._began >= TOGETHER


class Patience:
    """How long to wait before a process is started again: not at all, unless it keeps dying young."""

    def __init__(self) -> None:
        self._young = 0

    def after(self, lived: float) -> float:
        """Return the seconds to wait after an end; the process had ``lived`` so many."""
        self._young = self._young + 1 if lived < YOUNG else 1
        return min(2.0 ** min(self._young - 2, 10), LONGEST_PAUSE) if self._young > 1 else 0.0


@contextlib.contextmanager
def kept(what: str, start: Callable[[], Process]) -> Iterator["Keeper"]:
    """Keep a process beside this one: another takes its place where it ends. It ends, in order, with the context."""
    keeper = Keeper(what, start)
    keeper.begin()
    patience = 0.0  # for nothing, where the context is left in a hurry
    try:
        yield keeper
        patience = _ENOUGH
    finally:
        keeper.end(patience)


class Keeper:
    """Sees to it that there is a process."""

    def __init__(self, what: str, start: Callable[[], Process]) -> None:
        self._what = what
        self._start = start
        self._patience = Patience()
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._ready = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)

    def begin(self) -> None:
        """Start it."""
        self._thread.start()

    def dismiss(self) -> None:
        """Let it end, and do not wait for that."""
        with self._lock:
            if self._process and not self._ending.is_set():
                self._process.release()
            self._ending.set()

    def end(self, patience: float) -> None:
        """Let it end, for so many seconds."""
        self.dismiss()
        with self._lock:
            if self._process and not self._ready:
                patience = 0.0  # it has begun nothing yet that it would have to finish
        self._thread.join(patience)
        with self._lock:
            if self._process:
                self._process.signal(signal.SIGKILL)
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.is_set():
            began, told = time.monotonic(), b""
            try:
                with self._lock:
                    if self._ending.is_set():
                        return
                    self._ready = False
                    self._process = process = self._start()
                told = self._hear(process)
                with self._lock:
                    self._process = None
                    end = explain_end(process.bury())
            except OSError as failure:
                end = f"it cannot be started ({failure.strerror})"
            if not self._ending.is_set():
                pause = self._patience.after(time.monotonic() - began)
                reason = told.decode(errors="replace") or None
                _log.warning(f"the {self._what} ended", end=end, reason=reason, restart_in=pause)
                self._ending.wait(pause)

    def _hear(self, process: Process) -> bytes:
        told = b""
        while heard := os.read(process.report, 4096):
            if heard == READY:
                self._ready = True
                _log.debug(f"the {self._what} is ready", pid=process.pid)
            else:
                told += heard
        return told


def take_up() -> tuple[Any, Callable[[bytes], None]]:
    """Return a process's job, at its beginning, and how to tell its parent something.

    The signals of ``ENDING`` are left blocked. Raises ``SystemExit`` where the parent has ended already.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    atexit.register(gc.freeze)  # the last collection, of memory that goes anyway, takes a fifth of a second
    # Nothing but our own report may be taken for it.
    report = os.dup(1)
    os.dup2(2, 1)
    try:
        job = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent's pipe
    except EOFError:
        sys.exit(0)

    def tell(text: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(report, text)

    return job, tell


def wait_for_parent() -> None:
    """Return when the parent has ended, or lets us end."""
    # It never writes again: what is read is the end of the pipe, which it held open.
    while os.read(0, 1):
        pass
