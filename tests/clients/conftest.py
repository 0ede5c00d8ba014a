"""Servers for the clients' tests: real processes over real sockets, on the embedded database."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.service import Service

OPTIONS = ("--metrics-listen", "127.0.0.1:0", "--cache-ttl", "10m")
"""Flags of ``serve``: counts can be read, and a key that clients forget was not merely remembered for long enough."""


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Service:
    """Give an installation that is never served, only copied: founding takes a second."""
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
    """Give a running server for tests that leave it running; they keep to projects of their own."""
    with served_copy(installation, tmp_path_factory.mktemp("shared")) as service:
        yield service


@pytest.fixture
def own_server(installation: Service, tmp_path: Path) -> Iterator[Service]:
    """Give a running server of the test's own, which it may stop."""
    with served_copy(installation, tmp_path) as service:
        yield service
