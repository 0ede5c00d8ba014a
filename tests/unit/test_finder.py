"""Finding keys: which index serves a page, its maximum cost, and the table of scopes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.domain import OPERATOR, Domain
from tumbler_server.clock import HOUR, SECOND
from tumbler_server.keys import finder
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.listing import Query
from tumbler_server.store.database import Store, Transaction

Statement = tuple[str, Sequence[object]]


@pytest.fixture
def database_url(empty_database_url: str) -> str:
    """Return a new database: what was in it before would change PostgreSQL's plans."""
    return empty_database_url


@pytest.fixture
def statements(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Statement]:
    """Record the statements read from the database."""
    read, gathered = Store.read, list[Statement]()

    def gathering(self: Store, sql: str, parameters: Sequence[object] = ()) -> Any:
        gathered.append((sql, parameters))
        return read(self, sql, parameters)

    monkeypatch.setattr(Store, "read", gathering)
    return gathered


def plan(store: Store, statement: Statement) -> str:
    """Return the database's plan for a statement; on PostgreSQL, as if the table were large."""
    sql, parameters = statement
    if store.dialect == "sqlite":
        return "\n".join(row[3] for row in store.read(f"EXPLAIN QUERY PLAN {sql}", parameters))

    def explain(db: Any) -> str:
        for other in ("seqscan", "bitmapscan", "sort", "incremental_sort", "hashjoin", "mergejoin"):
            db.execute_sql(f"SET LOCAL enable_{other} = off")
        return "\n".join(row[0] for row in db.execute_sql(f"EXPLAIN {sql.replace('?', '%s')}", parameters).fetchall())

    return store.write_unserialized(explain)


PLANS: list[tuple[dict[str, Any], str]] = [
    ({}, "api_key_by_project_create_time"),
    ({"order_by": "name"}, "api_key_by_project_name"),
    ({"order_by": "expire_time desc"}, "api_key_by_project_expire_time"),
    ({"order_by": "last_used_time"}, "api_key_by_project_last_used_time"),
    ({"owner_id": "alice"}, "api_key_by_project_owner"),
    ({"owner_id": "alice", "order_by": "create_time asc"}, "api_key_by_project_owner"),
    ({"environment_id": "live"}, "api_key_by_project_environment"),
    ({"scope": "orders:read"}, "api_key_scope"),
    ({"states": (4,)}, "api_key_by_project_standing"),
    ({"states": (2, 5)}, "api_key_by_project_standing"),
    ({"states": (1, 3)}, "api_key_by_project_standing"),
    ({"states": (1,)}, "api_key_by_project_standing"),
    ({"states": (3,)}, "api_key_by_project_standing"),
    ({"search": "part"}, "api_key_by_project_create_time"),
    ({"search": "part", "order_by": "name"}, "api_key_by_project_name"),
    ({"owner_id": "alice", "order_by": "name"}, "api_key_by_project_name"),
    ({"project_id": "", "order_by": "name"}, "api_key_by_name"),
    ({"project_id": ""}, "api_key_by_create_time"),
]


@pytest.mark.parametrize(("query", "index"), PLANS, ids=str)
@pytest.mark.parametrize("after", [False, True], ids=["first", "next"])
def test_a_page_reads_its_index(
    domain: Domain,
    statements: list[Statement],
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, Any],
    index: str,
    after: bool,
) -> None:
    """Each filter and order reads a page from its own index, and the keys by their ids."""
    for _ in range(3):
        domain.create(name="a part", owner_id="alice", environment_id="live", scopes=("orders:read",), ttl=HOUR)
    monkeypatch.setattr(finder, "SORTED", -1)  # no set counts as small
    asked = Query(**{"project_id": "acme", "page_size": 1, **query})
    page = domain.listing.page(OPERATOR, asked)
    if after and page.next_page_token:
        statements.clear()
        domain.listing.page(OPERATOR, Query(**{**vars(asked), "page_token": page.next_page_token}))
    found = plan(domain.store, statements[-1])
    if domain.store.dialect == "sqlite":
        assert f"INDEX {index}" in found or (index == "api_key_scope" and "api_key_scope USING PRIMARY KEY" in found)
        assert "SEARCH k USING INDEX sqlite_autoindex_api_key_1 (id=?)" in found
        covered = query.get("order_by", "") in ("", "create_time asc") and query.get("project_id", "acme")
    else:
        assert index in found
        assert "api_key_pkey" in found
        assert "Seq Scan" not in found
        covered = False  # PostgreSQL reads only the index or not, depending on vacuum
    if covered and index != "api_key_scope":
        assert f"USING COVERING INDEX {index} " in found


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ({"owner_id": "alice", "order_by": "name"}, "api_key_by_project_owner"),
        ({"scope": "orders:read", "order_by": "last_used_time"}, "api_key_scope"),
        ({"states": (3,)}, "api_key_by_project_expire_time"),
        ({"states": (1,), "order_by": "name"}, "api_key_by_project_standing"),
    ],
    ids=str,
)
def test_a_small_set_is_read_and_sorted(
    domain: Domain, statements: list[Statement], query: dict[str, Any], index: str
) -> None:
    """If a filter matches few keys, they are read from its index and sorted."""
    domain.create(owner_id="alice", scopes=("orders:read",), ttl=HOUR)
    domain.clock.advance(2 * HOUR if query.get("states") == (3,) else 0)
    for _ in range(5):
        domain.create(owner_id="bob")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finder, "SORTED", 1 if query.get("states") != (1,) else 6)
        page = domain.listing.page(OPERATOR, Query(project_id="acme", **query))
    assert len(page.keys) == (6 if query.get("states") == (1,) else 1)
    assert not page.next_page_token
    assert index in plan(domain.store, statements[-1])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every bound small."""
    for bound in ("SCANNED", "READ", "COUNTED"):
        monkeypatch.setattr(finder, bound, 4)
    monkeypatch.setattr(finder, "SORTED", 1)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("query", [{"search": "wanted"}, {"search": "wanted", "order_by": "name"}], ids=str)
def test_a_walk_that_finds_too_few_ends_the_page_early(domain: Domain, query: dict[str, Any]) -> None:
    """A walk that finds too few keys ends the page early, perhaps empty; its token continues after the last entry."""
    for number in range(10):
        domain.create(name=f"{number:03} wanted" if number in (1, 9) else f"{number:03}")
        domain.clock.advance(SECOND)
    found, token = [], ""
    for _ in range(3):
        page = domain.listing.page(OPERATOR, Query(project_id="acme", page_token=token, **query))
        found.append([key.name for key in page.keys])
        token = page.next_page_token
    pages = [["009 wanted"], [], ["001 wanted"]]
    assert found == (pages[::-1] if "order_by" in query else pages) or found == [["001 wanted"], [], ["009 wanted"]]
    assert not token


@pytest.mark.usefixtures("narrow")
def test_skip_goes_on_behind_an_early_end(domain: Domain) -> None:
    """If a page ends early, its token carries the rest of `skip`."""
    for number in range(12):
        domain.create(name=f"{number:03} even" if number % 2 == 0 else f"{number:03} odd")
        domain.clock.advance(SECOND)
    first = domain.listing.page(OPERATOR, Query(project_id="acme", search="even", skip=3))
    second = domain.listing.page(OPERATOR, Query(project_id="acme", search="even", page_token=first.next_page_token))
    third = domain.listing.page(OPERATOR, Query(project_id="acme", search="even", page_token=second.next_page_token))
    assert [key.name for page in (first, second, third) for key in page.keys] == ["004 even", "002 even", "000 even"]
    assert not first.keys
    assert not third.next_page_token


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("query", "size"),
    [({}, 4), ({"owner_id": "alice"}, 4), ({"owner_id": "bob"}, 1), ({"search": "alice"}, 4), ({"search": "bob"}, 0)],
    ids=str,
)
def test_a_count_stops(domain: Domain, query: dict[str, Any], size: int) -> None:
    """The total_size is exact up to the bound, and never more than the true number beyond it."""
    domain.create(name="of bob", owner_id="bob")
    for _ in range(6):
        domain.clock.advance(SECOND)
        domain.create(name="of alice", owner_id="alice")
    page = domain.listing.page(OPERATOR, Query(project_id="acme", show_total_size=True, **query))
    assert page.total_size == size


def scopes(store: Store) -> list[tuple[Any, ...]]:
    """Return the rows of the table of scopes."""
    return store.read("SELECT project_id, scope, key_id FROM api_key_scope ORDER BY project_id, scope, key_id")


class TestScopes:
    """The table of scopes follows the keys."""

    def test_created_and_updated(self, domain: Domain) -> None:
        """Create, Update and Rotate keep a key's scopes in the table up to date."""
        key = domain.create(scopes=("a", "b:*")).key
        assert scopes(domain.store) == [("acme", "a", key.id), ("acme", "b:*", key.id)]
        domain.lifecycle.update(OPERATOR, Edit(key.id, Draft("acme", scopes=("b:*", "c")), ("scopes",)))
        assert scopes(domain.store) == [("acme", "b:*", key.id), ("acme", "c", key.id)]
        domain.lifecycle.update(OPERATOR, Edit(key.id, Draft("acme", name="other"), ("name",)))
        new = domain.rotate(key.id).key
        assert scopes(domain.store) == sorted(
            ("acme", scope, each) for scope in ("b:*", "c") for each in (key.id, new.id)
        )
        domain.lifecycle.update(OPERATOR, Edit(key.id, Draft("acme"), ("scopes",)))
        assert scopes(domain.store) == [("acme", "b:*", new.id), ("acme", "c", new.id)]

    def test_rolled_back(self, domain: Domain) -> None:
        """A change that is rolled back changes no scope."""
        key = domain.create(scopes=("a",)).key

        def work(transaction: Transaction) -> None:
            transaction.run_many("UPDATE api_key SET scopes = ? WHERE id = ?", [('["b"]', key.id)])
            raise KeyError

        with pytest.raises(KeyError):
            domain.store.write_serialized(work)
        assert scopes(domain.store) == [("acme", "a", key.id)]


def test_a_name_of_many_keys_is_looked_for_in_its_index(
    domain: Domain, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """SetActive by name holds the write lock, so it reads one index and only the keys it needs."""
    gathered: list[Statement] = []
    read: Callable[..., Any] = Transaction.read

    def gathering(self: Transaction, sql: str, parameters: Sequence[object] = ()) -> Any:
        gathered.append((sql, parameters))
        return read(self, sql, parameters)

    monkeypatch.setattr(Transaction, "read", gathering)
    dead = [domain.create(name="worker").key.id for _ in range(3)]
    for key_id in dead:
        domain.revoke(key_id)
    living = domain.create(name="worker").key.id
    gathered.clear()
    assert domain.lifecycle.set_active_by_name(OPERATOR, "acme", "", "worker", False).key.id == living
    (statement,) = [each for each in gathered if each[0].startswith("SELECT id FROM api_key")]
    assert "api_key_by_name_in_use" in plan(store, statement)
    assert store.read(statement[0], statement[1]) == [(living,)]
