"""Real server processes, over real sockets, on both databases."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.service import Service

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def servers(
    new_database: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Service]]:
    """Return a function that gives the running server for a dialect. All tests share it."""
    running: dict[str, Service] = {}

    def serve(dialect: str) -> Service:
        if dialect not in running:
            running[dialect] = Service(tmp_path_factory.mktemp(dialect) / "data", new_database(dialect)).init().start()
        return running[dialect]

    yield serve
    for service in running.values():
        service.close()


@pytest.fixture(scope="session")
def others(servers: Callable[[str], Service]) -> Iterator[Callable[[str], Service]]:
    """Return a function that gives a second process on the database of a dialect's server."""
    running: dict[str, Service] = {}

    def serve(dialect: str) -> Service:
        if dialect not in running:
            running[dialect] = servers(dialect).beside()
        return running[dialect]

    yield serve
    for service in running.values():
        service.close()


@pytest.fixture
def server(dialect: str, servers: Callable[[str], Service]) -> Service:
    """Return a running server on each database. Tests leave it running and use projects of their own."""
    return servers(dialect)


@pytest.fixture
def other(dialect: str, others: Callable[[str], Service]) -> Service:
    """Return a second running process on the database of ``server``."""
    return others(dialect)


@pytest.fixture
def sqlite_server(servers: Callable[[str], Service]) -> Service:
    """Return the shared server on SQLite, for tests that do not depend on the database."""
    return servers("sqlite")


@pytest.fixture
def project() -> str:
    """Return the name of a project that no other test uses."""
    return f"project-{next(_numbers)}"


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Return an installation on SQLite that is only copied, never served: ``init`` takes a second."""
    return Service(tmp_path_factory.mktemp("founded") / "data").init()


@pytest.fixture
def embedded(founded: Service, tmp_path: Path) -> Iterator[Service]:
    """Return a private installation on SQLite, not yet served."""
    service = Service(shutil.copytree(founded.data_dir, tmp_path / "data"), operator=founded.key)
    yield service
    service.close()


@pytest.fixture
def installed(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """Return a private installation on each database, not yet served."""
    if dialect == "sqlite":
        yield request.getfixturevalue("embedded")
        return
    service = Service(tmp_path / "data", request.getfixturevalue("database_url")).init()
    yield service
    service.close()
