"""List for any keys and queries: pages, filters and order."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.domain import OPERATOR, new_store
from tests.harness import FrozenClock
from tumbler_server.clock import NEVER
from tumbler_server.keys import finder, record
from tumbler_server.keys.listing import Listing, Query
from tumbler_server.keys.record import Key, State
from tumbler_server.secrets.opaque_tokens import OpaqueTokens
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow

NOW = FrozenClock().now

# Texts whose order or letter case databases and languages often treat differently.
NAMES = [
    "aaa", "AAA", "Zzz", "zzz", "éte", "ete", "ключ", "КЛЮЧ", "straße", "STRASSE", "a_b", "a%b", "a\\b", "a'b", 'a"b',
    "\uffffx", "\U0001f511 key", "İst", "ist",
]  # fmt: skip
SCOPES = ["orders", "orders:read", "orders:*", "*", "users:read", "a-b"]

times = st.sampled_from([0, NOW - 1, NOW, NOW + 1, NEVER])

drafts = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "environment_id": st.sampled_from(["", "live"]),
        "owner_id": st.sampled_from(["", "user:1"]),
        "key_prefix": st.sampled_from(["tmb_", "acme_live_"]),
        "scopes": st.lists(st.sampled_from(SCOPES), unique=True).map(tuple),
        "active": st.booleans(),
        "create_time": st.sampled_from([NOW - 2, NOW - 1, NOW]),
        "expire_time": times,
        "last_used_time": st.sampled_from([0, NOW - 1, NOW]),
        "revoke_time": times,
        "replaced_by_key_id": st.sampled_from(["", "x"]),
        "grace_expire_time": times,
    }
)
orders = st.tuples(
    st.sampled_from(["create_time", "name", "expire_time", "last_used_time"]), st.sampled_from(["", " asc", " desc"])
)

_numbers = itertools.count()
_settings = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


class Project:
    """A project of its own in a database that all examples share."""

    def __init__(self, store: Store) -> None:
        self.id = f"project-{next(_numbers)}"
        self._store = store
        self._listing = Listing(store, OpaqueTokens(bytes(32), lambda _: ""), lambda: NOW)

    def insert(self, values: list[dict[str, Any]], ids: list[int]) -> list[Key]:
        """Insert keys with these fields into the table. The numbers begin their ids."""
        keys = [
            Key(id=f"{number:08}{next(_numbers):08}", project_id=self.id, **fields)
            for number, fields in zip(ids, values, strict=True)
        ]
        rows = [{**record.to_columns(key), "secret_hash": "", "digest": None, "pepper_id": ""} for key in keys]

        def work(transaction: Transaction) -> None:
            transaction.run(ApiKeyRow.insert_many(rows))

        if rows:
            self._store.write_serialized(work)
        return keys

    def page(self, **query: Any) -> Any:
        """Return a page of the project's keys."""
        return self._listing.page(OPERATOR, Query(project_id=self.id, **query))

    def all(self, **query: Any) -> list[Key]:
        """Return all keys that match a query."""
        return list(self.page(page_size=1_000, **query).keys)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """Yield a store on each database."""
    store = new_store(database_url)
    yield store
    store.close()


def ids_of(keys: list[Key]) -> list[str]:
    """Return the ids of keys."""
    return [key.id for key in keys]


batches = st.lists(st.tuples(drafts, st.integers(0, 9)), max_size=4)


class TestPages:
    """Paging."""

    @_settings
    @given(
        before=st.lists(st.tuples(drafts, st.integers(0, 9)), max_size=12),
        between=st.lists(batches, min_size=1, max_size=3),
        order=orders,
        size=st.integers(1, 5),
    )
    def test_none_is_skipped_or_repeated(
        self,
        store: Store,
        before: list[tuple[dict[str, Any], int]],
        between: list[list[tuple[dict[str, Any], int]]],
        order: tuple[str, str],
        size: int,
    ) -> None:
        """Each key that existed before comes once, and none comes twice, even if keys are created between two pages."""
        project = Project(store)
        there = project.insert([fields for fields, _ in before], [number for _, number in before])
        order_by = "".join(order)
        listed: list[Key] = []
        token = ""
        for batch in itertools.chain(between, itertools.repeat([])):
            page = project.page(order_by=order_by, page_size=size, page_token=token)
            assert len(page.keys) <= size
            listed += page.keys
            token = page.next_page_token
            if not token:
                break
            project.insert([fields for fields, _ in batch], [number for _, number in batch])
        assert len(set(ids_of(listed))) == len(listed)
        assert set(ids_of(there)) <= set(ids_of(listed))
        column, direction = order
        assert listed == sorted(listed, key=lambda key: (getattr(key, column), key.id), reverse=direction == " desc")

    @_settings
    @given(
        before=st.lists(st.tuples(drafts, st.integers(0, 9)), max_size=12),
        size=st.integers(1, 5),
        skip=st.integers(0, 15),
    )
    def test_skip(self, store: Store, before: list[tuple[dict[str, Any], int]], size: int, skip: int) -> None:
        """``skip`` leaves out that many keys from the start, by default the newest ones."""
        project = Project(store)
        keys = project.insert([fields for fields, _ in before], [number for _, number in before])
        keys.sort(key=lambda key: (key.create_time, key.id), reverse=True)
        page = project.page(page_size=size, skip=skip, show_total_size=True)
        assert list(page.keys) == keys[skip : skip + size]
        assert page.total_size == len(keys)


filters = st.fixed_dictionaries(
    {
        "environment_id": st.sampled_from(["", "", "live"]),
        "owner_id": st.sampled_from(["", "", "user:1"]),
        "scope": st.sampled_from(["", "", "orders:read", "*", ", "]),
        "search": st.sampled_from(["", "", "a", "ss", "tmb"]),
        "states": st.sets(st.sampled_from(list(State)), max_size=3),
    }
)


def fits(key: Key, wanted: dict[str, Any]) -> bool:
    """Return whether a key matches a filter."""
    part = wanted["search"].casefold()
    return (
        wanted["environment_id"] in ("", key.environment_id)
        and wanted["owner_id"] in ("", key.owner_id)
        and (not wanted["scope"] or wanted["scope"] in key.scopes)
        and (part in key.name.casefold() or part in key.key_prefix.casefold())
        and (not wanted["states"] or key.state(NOW) in wanted["states"])
    )


@pytest.fixture(params=["small sets are sorted", "walks"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the limits of the keys that a page reads so small that a few keys exceed them."""
    for bound in ("SCANNED", "READ"):
        monkeypatch.setattr(finder, bound, 3)
    monkeypatch.setattr(finder, "SORTED", 4 if request.param == "small sets are sorted" else -1)


@pytest.mark.usefixtures("narrow")
class TestEarlyEnds:
    """Pages that end early because they reached the limit of keys to read."""

    @_settings
    @given(
        before=st.lists(st.tuples(drafts, st.integers(0, 9)), max_size=20),
        between=st.lists(batches, min_size=1, max_size=3),
        wanted=filters,
        order=orders,
        size=st.integers(1, 5),
        skip=st.integers(0, 3),
    )
    def test_none_is_skipped_or_repeated(
        self,
        store: Store,
        before: list[tuple[dict[str, Any], int]],
        between: list[list[tuple[dict[str, Any], int]]],
        wanted: dict[str, Any],
        order: tuple[str, str],
        size: int,
        skip: int,
    ) -> None:
        """For any filter and order, each matching key that is not skipped comes once, in order."""
        project = Project(store)
        keys = project.insert([fields for fields, _ in before], [number for _, number in before])
        there = [key for key in keys if fits(key, wanted)]
        listed: list[Key] = []
        page = project.page(order_by="".join(order), page_size=size, skip=skip, **wanted)
        for batch in itertools.chain(between, itertools.repeat([])):
            assert len(page.keys) <= size
            listed += page.keys
            if not page.next_page_token:
                break
            keys += project.insert([fields for fields, _ in batch], [number for _, number in batch])
            token = page.next_page_token
            page = project.page(order_by="".join(order), page_size=size, page_token=token, **wanted)
        assert all(fits(key, wanted) for key in listed)
        assert len(set(ids_of(listed))) == len(listed)
        column, direction = order
        assert listed == sorted(listed, key=lambda key: (getattr(key, column), key.id), reverse=direction == " desc")
        missing = set(ids_of(there)) - set(ids_of(listed))
        assert len(missing) <= skip
        if not any(between):
            assert len(missing) == min(skip, len(there))


class TestFilters:
    """Filters in SQL, compared with their meaning in Python."""

    @_settings
    @given(rows=st.lists(drafts, max_size=12), states=st.sets(st.sampled_from(list(State))))
    def test_states(self, store: Store, rows: list[dict[str, Any]], states: set[State]) -> None:
        """A key is listed if its state, as `Key.state` computes it, is one of the requested ones."""
        project = Project(store)
        keys = project.insert(rows, list(range(len(rows))))
        found = project.all(states=tuple(map(int, states)), order_by="create_time")
        assert set(ids_of(found)) == {key.id for key in keys if not states or key.state(NOW) in states}

    @_settings
    @given(rows=st.lists(drafts, max_size=12))
    def test_each_key_has_one_state(self, store: Store, rows: list[dict[str, Any]]) -> None:
        """Every key is in exactly one of the states."""
        project = Project(store)
        project.insert(rows, list(range(len(rows))))
        counts = [project.page(states=(int(state),), show_total_size=True).total_size for state in State]
        assert sum(counts) == len(rows)

    @_settings
    @given(rows=st.lists(drafts, max_size=12), scope=st.sampled_from([*SCOPES, "orders:write", "o", "read", "Orders"]))
    def test_scope(self, store: Store, rows: list[dict[str, Any]], scope: str) -> None:
        """A key is found by a scope exactly as it is written, not by one that it grants, or by a prefix."""
        project = Project(store)
        keys = project.insert(rows, list(range(len(rows))))
        assert set(ids_of(project.all(scope=scope))) == {key.id for key in keys if scope in key.scopes}

    @_settings
    @given(
        rows=st.lists(drafts, max_size=12),
        search=st.sampled_from(NAMES)
        | st.sampled_from(["A", "z", "%", "_", "\\", "'", '"', "tmb", "ACME_LIVE", "e", " "]),
    )
    def test_search(self, store: Store, rows: list[dict[str, Any]], search: str) -> None:
        """A key is found by a part of its name or prefix, in any case and script. No character is special."""
        project = Project(store)
        keys = project.insert(rows, list(range(len(rows))))
        part = search.casefold()
        expected = {key.id for key in keys if part in key.name.casefold() or part in key.key_prefix.casefold()}
        assert set(ids_of(project.all(search=search))) == expected

    @_settings
    @given(
        rows=st.lists(drafts, max_size=12),
        environment_id=st.sampled_from(["", "live", "test"]),
        owner_id=st.sampled_from(["", "user:1", "user"]),
    )
    def test_all_must_hold(self, store: Store, rows: list[dict[str, Any]], environment_id: str, owner_id: str) -> None:
        """A key must match every filter. An empty filter matches all keys."""
        project = Project(store)
        keys = project.insert(rows, list(range(len(rows))))
        found = project.page(environment_id=environment_id, owner_id=owner_id, page_size=1, show_total_size=True)
        expected = [
            key
            for key in keys
            if (not environment_id or key.environment_id == environment_id)
            and (not owner_id or key.owner_id == owner_id)
        ]
        assert found.total_size == len(expected)


@pytest.mark.parametrize("text", [", ", '", "', "a, b", "a", "[", "]", '"', "*"])
def test_a_scope_is_no_pattern(store: Store, text: str) -> None:
    """A scope that no key has finds no key, even if it matches the stored text of scopes."""
    project = Project(store)
    project.insert([{"scopes": ("ab", "b")}, {"scopes": ("a:*",)}], [1, 2])
    assert project.all(scope=text) == []
