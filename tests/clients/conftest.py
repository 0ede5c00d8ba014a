"""Servers for the clients' tests: real processes over real sockets, on the embedded database."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.service import Service

OPTIONS = ("--metrics-listen", "127.0.0.1:0", "--cache-ttl", "10m")
"""Flags of ``serve``: counts can be read, and keys stay cached so long that one that leaves a cache was evicted."""


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Return an installation that is never served, only copied: creating one takes a second."""
    return Service(tmp_path_factory.mktemp("installation") / "data").init()


@contextmanager
def served_copy(installation: Service, folder: Path) -> Iterator[Service]:
    """Serve a copy of an installation."""
    service = Service(shutil.copytree(installation.data_dir, folder / "data"), "", OPTIONS, installation.key)
    try:
        yield service.start()
    finally:
        service.close()


@pytest.fixture(scope="session")
def shared_server(installation: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield a running server for tests that leave it running. Each keeps to its own project."""
    with served_copy(installation, tmp_path_factory.mktemp("shared")) as service:
        yield service


@pytest.fixture
def own_server(installation: Service, tmp_path: Path) -> Iterator[Service]:
    """Yield a running server for one test, which may stop it."""
    with served_copy(installation, tmp_path) as service:
        yield service
