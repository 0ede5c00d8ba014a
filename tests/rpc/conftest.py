"""A whole service in this process, called through grpcio-testing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import FrozenClock, World


@pytest.fixture
def world(database_url: str, tmp_path: Path, clock: FrozenClock) -> Iterator[World]:
    """Give a service on each database, whose clock stands still."""
    world = World(database_url, tmp_path / "data", clock)
    yield world
    world.close()


@pytest.fixture
def twin(world: World) -> Iterator[World]:
    """Give a second service on the same database, as another server would be."""
    twin = world.twin()
    yield twin
    twin.close()
