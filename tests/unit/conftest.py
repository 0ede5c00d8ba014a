"""A database with its tables, and the domain on it."""

from collections.abc import Iterator

import pytest

from tests.domain import Domain, new_store
from tests.harness import FrozenClock
from tumbler_server.store.database import Store


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Yield a store on each kind of database, with its tables created and empty."""
    store = new_store(database_url)
    yield store
    store.close()


@pytest.fixture
def domain(store: Store, clock: FrozenClock) -> Iterator[Domain]:
    """Yield the domain on each kind of database, with a frozen clock."""
    domain = Domain(store, clock)
    yield domain
    domain.close()
