"""A serving process: the only one, or one of several that a supervisor has started."""

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import REGISTRY

from tumbler_server import logs, metrics
from tumbler_server.config import Config
from tumbler_server.errors import InstallationLost, SetupError, StoreUnavailable, explain
from tumbler_server.freshness.board import Board
from tumbler_server.processes import ENDING, LOST, READY, Keeper, Process, kept, take_up, wait_for_parent


@dataclass(frozen=True)
class Job:
    """What a worker receives.

    ``board`` is the descriptor of the server's ``board_file``, and ``slot`` the worker's place on it.
    """

    config: Config
    board: int
    slot: int


def serve(
    config: Config, board: Board, ready: Callable[[int], None], stopping: Callable[[], None], scheduling: bool = True
) -> None:
    """Serve until one of ``ENDING``, then finish the calls in flight. With ``scheduling``, run a scheduler, too.

    ``ready`` is called with the port once calls are accepted, and ``stopping`` when no more are. The signals of
    ``ENDING`` are left blocked. Raises ``SetupError``; ``StoreUnavailable`` if the database does not answer at the
    start; and ``InstallationLost`` if the database is no longer the one that was opened.
    """
    # Block the signals before any thread exists, so that every thread inherits this, and a signal waits for us below.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    # The supervisor imports this module, and needs neither gRPC nor the memory that gRPC takes.
    from tumbler_server.server import build_server

    with contextlib.ExitStack() as open_:
        folder = metrics.inherited()
        if config.metrics_listen:
            folder = open_.enter_context(metrics.folder(config.installation.data_dir))
            REGISTRY.register(metrics.Scheduled(folder.path))
            open_.enter_context(metrics.served(config.metrics_listen))
        server = build_server(config, board=board)
        server.start()
        environment = folder.environment if folder else os.environ.copy
        scheduler = open_.enter_context(_scheduler(config, environment)) if scheduling else None
        ready(server.port)
        signal.sigwait(ENDING)
        stopping()
        if scheduler:
            scheduler.dismiss()  # so that both end at the same time
        server.stop()
        if server.lost:
            raise InstallationLost(server.lost)
        if server.failed:
            sys.exit(1)


def _scheduler(
    config: Config, environment: Callable[[], Mapping[str, str]]
) -> contextlib.AbstractContextManager[Keeper]:
    # All schedulers of this server have one name. A new one can take the lease of the last at once, because we have
    # seen that one end.
    holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
    return kept("scheduler", lambda: Process("tumbler_server.scheduler.scheduler", (config, holder), environment()))


def main() -> None:
    """Run a worker: receive the job from the supervisor, report to it, and end when it ends."""
    job, tell = take_up()
    logs.configure(job.config.log_level, job.config.log_format)
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    try:
        # Exactly one of a server's workers runs the scheduler: the first.
        serve(job.config, Board(job.board, job.slot), lambda _: tell(READY), lambda: None, scheduling=job.slot == 0)
    except (SetupError, StoreUnavailable) as failure:
        tell(explain(failure).encode())
        sys.exit(LOST if isinstance(failure, InstallationLost) else 1)


def _end_with_supervisor() -> None:
    wait_for_parent()
    os.kill(os.getpid(), signal.SIGTERM)
