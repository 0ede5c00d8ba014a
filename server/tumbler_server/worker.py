"""A process that serves: the only one, or one of several that a supervisor has started."""

import contextlib
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tumbler_server import logs, metrics
from tumbler_server.config import Config
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.events.board import Board

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
"""The signals that end a server in order."""

READY = b"ready"
"""What a worker tells its supervisor as soon as it serves. Anything else is why it does not."""


@dataclass(frozen=True)
class Job:
    """What a worker is told, by a pipe: a database's URL can hold a password, and a command line is for all to read.

    ``board`` is the descriptor of the server's ``board_file``, and ``slot`` the worker's place on it.
    """

    config: Config
    board: int
    slot: int
    log_level: str
    log_format: str


def serve(config: Config, board: Board, ready: Callable[[int], None], stopping: Callable[[], None]) -> None:
    """Serve until one of ``ENDING``, then finish the calls under way.

    ``ready`` is called with the port once calls are taken, and ``stopping`` when no more are. The signals of ``ENDING``
    are left blocked. Raises ``SetupError``, and ``StoreUnavailable`` where the database does not answer at the start.
    """
    # Blocked before any thread exists, so that every thread inherits it and the signal waits for us below.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # The supervisor knows this module, and needs neither gRPC nor the memory that it takes.
    from tumbler_server.server import build_server

    with contextlib.ExitStack() as shown:
        if config.metrics_listen:
            shown.enter_context(metrics.served(config.metrics_listen))
        server = build_server(config, board=board)
        server.start()
        ready(server.port)
        signal.sigwait(ENDING)
        stopping()
        server.stop()


def explain(failure: SetupError | StoreUnavailable) -> str:
    """Return what an operator is told of a server that cannot start."""
    return str(failure) if isinstance(failure, SetupError) else "the database does not answer"


def main() -> None:
    """Be a worker: take the job from stdin, tell on stdout how it goes, and end when the supervisor does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # Nothing but our own report may be taken for it.
    report = os.dup(1)
    os.dup2(2, 1)
    try:
        job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own supervisor's pipe
    except EOFError:
        return
    logs.configure(job.log_level, job.log_format)
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    try:
        serve(job.config, Board(job.board, job.slot), lambda _: _tell(report, READY), lambda: None)
    except (SetupError, StoreUnavailable) as failure:
        _tell(report, explain(failure).encode())
        sys.exit(1)


def _tell(report: int, text: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(report, text)


def _end_with_supervisor() -> None:
    # It never writes again: what is read is the end of the pipe, which it held open.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
