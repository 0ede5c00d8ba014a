"""A real server process that sends webhooks to this machine."""

from collections.abc import Iterator

import pytest

from tests.e2e.service import Service
from tests.webhooks.receiver import OPTIONS, Receiver


@pytest.fixture(scope="session")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield a running server. Each test uses a project of its own."""
    service = Service(tmp_path_factory.mktemp("sender") / "data", "", OPTIONS).init()
    try:
        yield service.start()
    finally:
        service.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Yield a receiver that accepts everything."""
    with Receiver() as receiver:
        yield receiver
