"""The service's counters, for operators. Names and labels hold nothing of a key."""

import contextlib
import fcntl
import os
import shutil
import socket
import socketserver
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Metric, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from tumbler_server import logs
from tumbler_server.errors import CannotListen, SetupError
from tumbler_server.limits import MIB

_log = logs.get_logger(__name__)

VERDICTS = Counter("tumbler_verdicts", "Verdicts given by Verify and BatchVerify.", ["code"])
RECORD_READS = Counter("tumbler_record_reads", "Key records read from the database to verify keys.")
ALTERED_RECORDS = Counter(
    "tumbler_altered_records", "Reads of keys that were refused because the row does not match the key's last event."
)
BCRYPT_RUNS = Counter("tumbler_bcrypt_runs", "Secrets checked by bcrypt.")
STALE_ANSWERS = Counter(
    "tumbler_stale_answers", "Calls answered from data older than --max-staleness, as --stale-if-error allows."
)
WATCH_STREAMS = Gauge("tumbler_watch_streams", "Open Watch streams.", multiprocess_mode="livesum")

REFUSED = Counter("tumbler_refused", "Calls and streams refused because a limit was reached.", ["limit"])
CUT = Counter("tumbler_connections_cut", "Connections of unauthenticated clients that were cut.")

ALARMS = Counter(
    "tumbler_alarms", "Events caused by time: rotations due or overdue, expiries near.", ["type"], registry=None
)
WEBHOOK_ATTEMPTS = Counter("tumbler_webhook_attempts", "Webhook attempts, by outcome.", ["outcome"], registry=None)
_SCHEDULED = frozenset(family.name for counter in (ALARMS, WEBHOOK_ATTEMPTS) for family in counter.describe())
"""Metrics that only schedulers count, and serving processes do not."""

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable with the folder in which processes count. The library reads it when it is imported."""

_PATIENCE = 10
"""Seconds that a connection may take to send its request."""

_READERS = 16
"""Most connections that are served at a time. One that comes then is closed at once."""


_PREFIX = ".metrics-"

_ROOM = MIB
"""Bytes that the disk must have left for a process to count. Its files take 64 KiB each."""


class Folder:
    """A folder in which processes count together, as long as its creator lives. ``path`` is its path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that is to count here.

        If a cleanup has removed the folder, it is created again. If that fails, the process starts all the same, but
        its counts are not shown.
        """
        environment = dict(os.environ)
        environment.pop(FOLDER, None)
        return {**environment, FOLDER: self.path} if self._stands() and self._has_room() else environment

    def _has_room(self) -> bool:
        """Return whether a process can count. It maps its file: if the disk has no page for that, SIGBUS ends it."""
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self.path).free >= _ROOM:
                return True
        _log.warning("the disk of the metrics folder is full: new processes are not counted", path=self.path)
        return False

    def _stands(self) -> bool:
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            found = os.lstat(self.path)
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
            if not ours:
                _log.warning("the metrics folder no longer belongs to this server: new processes are not counted")
            return ours
        except OSError as failure:
            _log.warning("the metrics folder is gone: new processes are not counted", error=failure.strerror)
            return False
        _log.warning("the metrics folder was removed and made again: counts of running processes are not shown")
        return True


def inherited() -> Folder | None:
    """Return the folder in which this process was started to count, if there is one."""
    return Folder(os.environ[FOLDER]) if FOLDER in os.environ else None


@contextlib.contextmanager
def folder(beside: Path) -> Iterator[Folder]:
    """Create a folder in which processes count together, in ``beside`` if that is writable. Raises ``SetupError``.

    Among temporary files, a cleanup would remove it one day.
    """
    parent = beside if os.access(beside, os.W_OK | os.X_OK) else None
    if parent:
        _remove_abandoned(parent)
    try:
        made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)  # of mode 0700
    except OSError as failure:
        raise SetupError(f"--metrics-listen needs a place for temporary files: {failure.strerror}") from None
    with made as name:
        held = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield Folder(name)
        finally:
            os.close(held)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of servers that were killed: no process holds their locks."""
    for each in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            held = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(each)
            finally:
                os.close(held)


class Counted(Collector):
    """The counts of all processes of a folder, including those that have ended.

    A process's file is empty between its creation and the first count, and stays empty if the process is killed in
    between. The library's own collector fails on such a file, and would do so forever.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def collect(self) -> Iterator[Metric]:
        """Return the counts."""
        files = [str(file) for file in self._folder.glob("*.db") if _has_content(file)]
        return iter(MultiProcessCollector.merge(files))


class Scheduled(Counted):
    """The counts of a folder's schedulers, for a process that also shows its own counts."""

    def collect(self) -> Iterator[Metric]:
        """Return the counts."""
        return (family for family in super().collect() if family.name in _SCHEDULED)


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def served(address: str, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Serve the counts over HTTP, in Prometheus' text format. Raises ``SetupError``.

    The log says where, because port 0 becomes a free one.
    """
    host, _, port = address.rpartition(":")
    try:
        family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        server = _Http(family, where)
    except OSError:
        raise CannotListen(address) from None
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    _log.info("metrics are served", address=f"{host}:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Request(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so in the base class
        """Log nothing: reading the counts is not worth a line."""


class _Http(socketserver.ThreadingMixIn, WSGIServer):
    # The server of prometheus_client starts a thread for everybody, and waits for silent ones for ever.
    daemon_threads = True
    allow_reuse_port = False  # some versions of Python would let two servers share the port

    def __init__(self, family: socket.AddressFamily, where: Any) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(_READERS)
        super().__init__(where, _Request)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread, if there is a place."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no more threads
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a broken connection: the client has gone away."""


def _allocate() -> None:
    """Give this process's count files their space on the disk, which may be full when a count first needs it."""
    if FOLDER in os.environ:
        for file in Path(os.environ[FOLDER]).glob(f"*_{os.getpid()}.db"):
            with contextlib.suppress(OSError), open(file, "rb+") as opened:
                os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


_allocate()
