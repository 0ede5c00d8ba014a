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
    """Give a function that returns the one running server on a dialect, which all tests share."""
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
    """Give a function that returns a second process on the database of a dialect's server."""
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
    """Give a running server on each database, for tests that leave it running; they keep to projects of their own."""
    return servers(dialect)


@pytest.fixture
def other(dialect: str, others: Callable[[str], Service]) -> Service:
    """Give a second running process on the database of ``server``."""
    return others(dialect)


@pytest.fixture
def sqlite_server(servers: Callable[[str], Service]) -> Service:
    """Give the shared server on SQLite, for tests to which the database makes no difference."""
    return servers("sqlite")


@pytest.fixture
def project() -> str:
    """Name a project that no other test uses."""
    return f"project-{next(_numbers)}"


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Give an installation on the embedded database that is never served, only copied: founding takes a second."""
    return Service(tmp_path_factory.mktemp("founded") / "data").init()


@pytest.fixture
def embedded(founded: Service, tmp_path: Path) -> Iterator[Service]:
    """Give an installation of the test's own on the embedded database, which nothing serves yet."""
    service = Service(shutil.copytree(founded.data_dir, tmp_path / "data"), operator=founded.key)
    yield service
    service.close()


@pytest.fixture
def installed(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """Give an installation of the test's own on each database, which nothing serves yet."""
    if dialect == "sqlite":
        yield request.getfixturevalue("embedded")
        return
    service = Service(tmp_path / "data", request.getfixturevalue("database_url")).init()
    yield service
    service.close()
