"""Child processes: started afresh, not forked, so that they share nothing by accident; none outlives its parent.

Two pipes connect a process to its parent. The process ends when its stdin closes, and the parent knows that it has
ended when its stdout closes. The job comes through stdin, because a database's URL can hold a password, and everyone
can read a command line.
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

from tumbler_server import logs

_GONE = {signal.SIGHUP} if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else set()

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, *_GONE})
"""The signals that stop a server gracefully. SIGHUP (its terminal was closed) is one of them, unless it is ignored,
as by nohup. A second SIGHUP is no second request: a shell that ends may send two."""

IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are for other servers, such as those that reopen their logs. By default they would end a process."""

READY = b"ready"
"""What a process sends to its parent when it starts its work. Anything else is the reason why it does not."""

LOST = 4
"""The exit code of a process whose database is no longer the one it opened. It must not be replaced."""

YOUNG = 30.0
"""Seconds. A process that lives longer is not one that keeps dying."""

LONGEST_PAUSE = 30.0
"""Maximum seconds before a process is restarted."""

TOGETHER = 1.0
"""Seconds. Signals within it are one request to stop: `timeout` signals its child, and then its group."""

_ENOUGH = 5.0
"""Seconds that a process has to end after it was told to."""

# With our own path: `-m` would put the current folder first, and so whatever is in it.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from {module} import main; main()"

_log = logs.get_logger(__name__)


class Process:
    """A process that runs ``main`` of a module, which receives the ``job``.

    Raises ``OSError`` if the system cannot start one.
    """

    def __init__(self, module: str, job: object, environment: Mapping[str, str], files: Sequence[int] = ()) -> None:
        self.began = time.monotonic()
        told, self._lifeline = os.pipe()
        self.report, telling = os.pipe()
        # The child inherits this: a signal to the whole group must wait until the child can end gracefully.
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
        """Return the process's id."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def release(self) -> None:
        """Tell it to end gracefully."""
        os.close(self._lifeline)
        self._lifeline = -1

    def bury(self) -> int:
        """Reap a process that has ended, and return its exit code; if negative, the signal that ended it."""
        code = self._process.wait()
        self._close()
        return code

    def _close(self) -> None:
        if self._lifeline >= 0:
            self.release()
        os.close(self.report)


def explain_end(code: int) -> str:
    """Return a text that says how a process ended."""
    return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"


class Ending:
    """A request to stop, which came just now."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def again(self) -> bool:
        """Return whether a signal that comes now is a second request: to end immediately."""
        return time.monotonic() - self._began >= TOGETHER


class Patience:
    """How long to wait before a process is restarted: not at all, unless it keeps dying young."""

    def __init__(self) -> None:
        self._young = 0

    def after(self, lived: float) -> float:
        """Return the seconds to wait before a restart. ``lived`` is how many seconds the process lived."""
        self._young = self._young + 1 if lived < YOUNG else 1
        return min(2.0 ** min(self._young - 2, 10), LONGEST_PAUSE) if self._young > 1 else 0.0


@contextlib.contextmanager
def kept(what: str, start: Callable[[], Process]) -> Iterator["Keeper"]:
    """Keep a process running beside this one: if it ends, another replaces it. With the context, it ends gracefully."""
    keeper = Keeper(what, start)
    keeper.begin()
    patience = 0.0  # no wait if the context ends with an exception
    try:
        yield keeper
        patience = _ENOUGH
    finally:
        keeper.end(patience)


class Keeper:
    """Keeps a process running."""

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
        """Start the process."""
        self._thread.start()

    def dismiss(self) -> None:
        """Tell the process to end, and do not wait."""
        with self._lock:
            if self._process and not self._ending.is_set():
                self._process.release()
            self._ending.set()

    def end(self, patience: float) -> None:
        """Tell the process to end, and kill it after ``patience`` seconds."""
        self.dismiss()
        with self._lock:
            if self._process and not self._ready:
                patience = 0.0  # it has no work to finish yet
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
    """Return a process's job, and a function that reports to its parent. Called when the process starts.

    The signals of ``ENDING`` are left blocked. Raises ``SystemExit`` if the parent has already ended.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    atexit.register(gc.freeze)  # a last collection, of memory that is freed anyway, would take a fifth of a second
    # The parent reads stdout, so only our own reports may go there.
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
    """Return when the parent has ended, or tells us to end."""
    # The parent holds the pipe open and never writes again, so the read returns when the pipe is closed.
    while os.read(0, 1):
        pass
