"""Runs several serving processes on one port: starts them, restarts those that die, and stops them.

It has no gRPC object and serves no call.
"""

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.multiprocess import mark_process_dead

from tumbler_server import logs, metrics
from tumbler_server.config import Config
from tumbler_server.errors import SetupError
from tumbler_server.freshness.board import board_file
from tumbler_server.ports import reserved
from tumbler_server.processes import ENDING, LOST, READY, Ending, Patience, Process, explain_end
from tumbler_server.worker import Job

_log = logs.get_logger(__name__)


def supervise(config: Config, ready: Callable[[int], None], stopping: Callable[[], None]) -> None:
    """Serve with ``config.workers`` processes until one of ``ENDING``; each then finishes its calls in flight.

    ``ready`` is called with the port once all of them serve, and ``stopping`` when they are told to end. A second
    signal, at least ``TOGETHER`` later, ends them immediately, and raises ``SystemExit``.

    Raises ``SetupError`` if a worker cannot start the first time. A worker that ends later is replaced, unless its
    database is no longer the one it opened: that raises ``SetupError`` too.
    """
    with contextlib.ExitStack() as open_:
        signals = open_.enter_context(_signals())
        port = open_.enter_context(reserved(config.listen))
        board = board_file(config.workers)
        open_.callback(os.close, board)
        counts = open_.enter_context(_counts(config))
        host = config.listen.rpartition(":")[0]
        # This process shows the counts of all workers, as one sum.
        config = replace(config, listen=f"{host}:{port}", metrics_listen="")
        jobs = [Job(config, board, slot) for slot in range(config.workers)]
        crew = open_.enter_context(_Crew(jobs, signals, counts))
        if crew.begin():
            ready(port)
            crew.keep()
        stopping()


class _Worker:
    """A worker's place. Its processes change; its number and its slot on the board stay."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.number = job.slot + 1
        self.patience = Patience()
        self.process: Process | None = None
        self.ready = False
        self.lived = 0.0
        self.told = ""
        self.end = ""
        self.in_order = False
        self.lost = False
        self.due: float | None = None

    def start(self, environment: dict[str, str]) -> None:
        """Start a process, if the system can."""
        self.ready, self.told, self.end, self.due = False, "", "", None
        try:
            self.process = Process("tumbler_server.worker", self.job, environment, [self.job.board])
        except OSError as failure:
            self.lived, self.end = 0.0, f"it cannot be started ({failure.strerror})"
            return
        _log.debug("a worker is starting", worker=self.number, pid=self.process.pid)

    def hear(self, process: Process) -> None:
        """Read what the process has sent. If that is nothing, the process has ended."""
        told = os.read(process.report, 4096)
        if told == READY:
            self.ready = True
            _log.info("a worker is ready", worker=self.number, pid=process.pid)
        elif told:
            self.told += told.decode(errors="replace")
        else:
            self.process = None
            self.lived = time.monotonic() - process.began
            code = process.bury()
            self.in_order = code == 0
            self.lost = code == LOST
            self.end = explain_end(code)
            _log.debug("a worker's process ended", worker=self.number, pid=process.pid, end=self.end)


class _Crew:
    """The workers. Leaving the context ends them gracefully."""

    def __init__(self, jobs: Sequence[Job], signals: int, counts: "_Counts") -> None:
        self._workers = [_Worker(job) for job in jobs]
        self._signals = signals
        self._counts = counts

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGTERM)

    def begin(self) -> bool:
        """Start all workers, and wait until they serve. Returns false if a signal came before that.

        Raises ``SetupError`` if a worker ends instead.
        """
        for worker in self._workers:
            worker.start(self._counts.environment())
        while not all(worker.ready for worker in self._workers):
            for worker in self._workers:
                if not worker.process:
                    raise SetupError(worker.told or f"worker {worker.number} ended before it served: {worker.end}")
            if self._turn():
                return False
        return True

    def keep(self) -> None:
        """Replace every process that ends, until a signal comes."""
        signals = b""
        while not signals:
            now = time.monotonic()
            pauses = [self._replace(worker, now) for worker in self._workers if not worker.process]
            signals = self._turn(min(pauses, default=None))

    def _replace(self, worker: _Worker, now: float) -> float:
        """Start a new process if it is time, and return the seconds until then.

        Raises ``SetupError`` if the previous one found that the database is no longer the one it opened. A new process
        would not see that, and would serve beside those that know the old database.
        """
        if worker.lost:
            raise SetupError(worker.told)
        if worker.due is None:
            pause = worker.patience.after(worker.lived)
            worker.due = now + pause
            _log.warning(
                "a worker ended", worker=worker.number, end=worker.end, reason=worker.told or None, restart_in=pause
            )
        if worker.due <= now:
            self._counts.restarts.inc()
            worker.start(self._counts.environment())
            return 0.0
        return worker.due - now

    def _end(self, number: signal.Signals) -> None:
        """Send a signal to all workers, and wait until they have ended."""
        told = Ending()
        ending = [worker for worker in self._workers if worker.process]
        for worker in ending:
            if worker.process:
                worker.process.signal(number)
        while any(worker.process for worker in ending):
            signals = self._turn().replace(bytes([signal.SIGHUP]), b"")
            if signals and number is not signal.SIGKILL and told.again():
                self._end(signal.SIGKILL)
                sys.exit(128 + signals[0])
        for worker in ending:
            if worker.ready and not worker.in_order:
                _log.warning("a worker did not end cleanly", worker=worker.number, end=worker.end)

    def _turn(self, timeout: float | None = None) -> bytes:
        """Wait until something happens, handle it, and return the numbers of the signals that came."""
        pipes = {worker.process.report: worker for worker in self._workers if worker.process}
        with selectors.DefaultSelector() as selector:
            for pipe in (self._signals, *pipes):
                selector.register(pipe, selectors.EVENT_READ)
            happened = [key.fd for key, _ in selector.select(timeout)]
        for pipe in happened:
            worker = pipes.get(pipe)
            if worker and worker.process:
                self._hear(worker, worker.process)
        return os.read(self._signals, 4096) if self._signals in happened else b""

    def _hear(self, worker: _Worker, process: Process) -> None:
        worker.hear(process)
        if not worker.process:
            self._counts.forget(process.pid)


class _Counts:
    """The sum of what all workers have counted, including those that have ended."""

    def __init__(self, folder: metrics.Folder | None = None) -> None:
        """Without a ``folder`` the counts are not shown, and each worker counts for itself."""
        self._folder = folder
        self.registry = CollectorRegistry()
        self.restarts = Counter(
            "tumbler_worker_restarts",
            "Workers started to replace one that ended.",
            registry=self.registry,
        )
        if folder:
            self.registry.register(metrics.Counted(folder.path))

    def environment(self) -> dict[str, str]:
        """Return the environment of a worker."""
        return self._folder.environment() if self._folder else dict(os.environ)

    def forget(self, pid: int) -> None:
        """Remove the gauges of a process that has ended from the sum. Its counters stay."""
        if self._folder:
            mark_process_dead(pid, self._folder.path)


@contextlib.contextmanager
def _counts(config: Config) -> Iterator[_Counts]:
    if not config.metrics_listen:
        yield _Counts()
        return
    with metrics.folder(config.installation.data_dir) as folder:
        counts = _Counts(folder)
        with metrics.served(config.metrics_listen, counts.registry):
            yield counts


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Yield a pipe from which the numbers of arriving signals can be read, one a byte."""
    receiver, sender = os.pipe()
    os.set_blocking(receiver, False)
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for number in ENDING:
        signal.signal(number, lambda *_: None)
    try:
        yield receiver
    finally:
        signal.set_wakeup_fd(-1)
        os.close(receiver)
        os.close(sender)
