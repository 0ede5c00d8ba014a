"""A whole service in this process, called through its engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FrozenClock, World
from tests.webhooks.receiver import Receiver


@pytest.fixture
def world(database_url: str, tmp_path: Path, clock: FrozenClock) -> Iterator[World]:
    """Return a service on each database, with a frozen clock."""
    world = World(database_url, tmp_path / "data", clock)
    yield world
    world.close()


@pytest.fixture
def twin(world: World) -> Iterator[World]:
    """Return a second service on the same database, as another server would be."""
    twin = world.twin()
    yield twin
    twin.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a webhook receiver on this machine, over real sockets."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def mailing(database_url: str, tmp_path: Path, clock: FrozenClock) -> Iterator[World]:
    """Return a service that may send webhooks to loopback addresses."""
    world = World(database_url, tmp_path / "data", clock, webhook_allow_loopback=True)
    yield world
    world.close()
