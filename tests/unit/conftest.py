"""A database with its tables, and the domain on it."""

from collections.abc import Iterator

import pytest

from tests.domain import Domain, new_store
from tests.harness import FrozenClock
from tumbler_server.store.database import Store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Give a store on each database, its tables made and empty."""
    store = new_store(database_url)
    yield store
    store.close()


@pytest.fixture
def domain(store: Store, clock: FrozenClock) -> Iterator[Domain]:
    """Give the domain on each database, by a clock that stands still."""
    domain = Domain(store, clock)
    yield domain
    domain.close()
