"""List: filters and orders. `test_list_pages.py` has its paging."""

from typing import Any

import grpc
import pytest

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, SECOND
from tumbler_server.limits import ENTRIES
from tumbler_server.store.models import ApiKeyRow


def names(world: World, key: str | None = None, **fields: Any) -> list[str]:
    """Return the names of the keys on a page, in order."""
    return [api_key.name for api_key in world.page(key, **fields).api_keys]


@pytest.fixture
def shelf(world: World) -> World:
    """Return a service with six keys in two projects."""
    world.create(name="Alpha", environment_id="live", owner_id="alice", scopes=["orders:read"])
    world.create(name="beta 100%", environment_id="test", owner_id="bob", scopes=["orders:*", "*"])
    world.create(name="STRASSE_1", owner_id="alice", scopes=["orders:read", "orders:write"], prefix="ship_yard")
    world.create(name="ÜNÏCODE", environment_id="live", owner_id="Alice", scopes=["orders:read:own"])
    world.create(name="back\\slash", scopes=["Orders:Read"])
    world.create(name="Straße", project_id="beta", environment_id="live", owner_id="alice")
    return world


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"project_id": "beta"}, ["Straße"]),
    ({"project_id": "nobody"}, []),
    ({"environment_id": "live"}, ["Alpha", "Straße", "ÜNÏCODE"]),
    ({"environment_id": "Live"}, []),
    ({"owner_id": "alice"}, ["Alpha", "STRASSE_1", "Straße"]),
    ({"owner_id": "ali"}, []),
    ({"scope": "orders:read"}, ["Alpha", "STRASSE_1"]),
    ({"scope": "orders:*"}, ["beta 100%"]),
    ({"scope": "*"}, ["beta 100%"]),
    ({"scope": "Orders:Read"}, ["back\\slash"]),
    ({"scope": "orders:Read"}, []),
    ({"scope": "orders"}, []),
    ({"scope": 'orders:read", "orders:write'}, []),
    ({"scope": ", "}, []),
    ({"scope": "%"}, []),
    ({"search": "alph"}, ["Alpha"]),
    ({"search": "ALPHA"}, ["Alpha"]),
    ({"search": "ünïc"}, ["ÜNÏCODE"]),
    ({"search": "strasse"}, ["STRASSE_1", "Straße"]),
    ({"search": "STRAßE"}, ["STRASSE_1", "Straße"]),
    ({"search": "%"}, ["beta 100%"]),
    ({"search": "a%a"}, []),
    ({"search": "lph_"}, []),
    ({"search": "e_1"}, ["STRASSE_1"]),
    ({"search": "k\\s"}, ["back\\slash"]),
    ({"search": "SHIP_yard_"}, ["STRASSE_1"]),
    ({"search": "alpha", "environment_id": "test"}, []),
    ({"project_id": "acme", "environment_id": "live", "owner_id": "alice", "scope": "orders:read"}, ["Alpha"]),
]


@pytest.mark.parametrize(
    ("fields", "expected"), FILTERS, ids=[",".join(map("=".join, fields.items())) for fields, _ in FILTERS]
)
def test_a_key_is_listed_where_all_filters_fit(shelf: World, fields: dict[str, Any], expected: list[str]) -> None:
    """Filters compare exactly; only search is a substring, in any case, and `%` and `_` in it are literal."""
    assert sorted(names(shelf, **fields)) == expected
    assert shelf.page(**fields, show_total_size=True).total_size == len(expected)


def test_search_finds_an_id(shelf: World) -> None:
    """Search finds a key by its ID in any case, because key_prefix holds the ID."""
    found = shelf.page(search="alpha").api_keys[0]
    assert list(shelf.page(search=found.id.swapcase()).api_keys) == [found]
    assert list(shelf.page(search=found.key_prefix).api_keys) == [found]


def test_a_listed_key_is_as_get_shows_it(shelf: World) -> None:
    """List returns each key's whole record."""
    for api_key in shelf.page().api_keys:
        assert api_key == shelf.get(api_key.id)


def _one_of_each_state(world: World) -> None:
    soon = world.clock.now + HOUR
    for name in ("active", "inactive", "expired", "revoked", "superseded", "superseded revoked", "inactive expired"):
        expiry = at(soon) if "expired" in name else None
        key_id = world.create(name=name, owner_id="states", expire_time=expiry).api_key.id
        if "superseded" in name:
            successor = world.rotate(key_id, grace_period=lasting(2 * HOUR)).api_key
            world.update(successor.id, "owner_id")
        if "revoked" in name:
            world.revoke(key_id)
        if "inactive" in name:
            world.set_active(key_id, False)


STATES = [
    (["ACTIVE"], ["active", "expired"], ["active"]),
    (["INACTIVE"], ["inactive", "inactive expired"], ["inactive", "inactive expired"]),
    (["EXPIRED"], [], ["expired"]),
    (["REVOKED"], ["revoked", "superseded revoked"], ["revoked", "superseded revoked"]),
    (["SUPERSEDED"], ["superseded"], ["superseded"]),
    (["ACTIVE", "EXPIRED"], ["active", "expired"], ["active", "expired"]),
    (["REVOKED", "SUPERSEDED"], ["revoked", "superseded", "superseded revoked"], None),
]


@pytest.mark.parametrize(("states", "before", "after"), STATES, ids=["+".join(states) for states, _, _ in STATES])
def test_states_are_those_of_the_moment(
    world: World, states: list[str], before: list[str], after: list[str] | None
) -> None:
    """The filter by state agrees with the returned state, before and at the instant of an expiry."""
    _one_of_each_state(world)
    wanted = [f"STATE_{state}" for state in states]
    for expected in (before, before if after is None else after):
        page = world.page(owner_id="states", states=wanted, order_by="name", show_total_size=True)
        assert [api_key.name for api_key in page.api_keys] == expected
        assert page.total_size == len(expected)
        assert {api_key_pb2.State.Name(api_key.state) for api_key in page.api_keys} <= set(wanted)
        world.clock.advance(HOUR)


def test_without_a_filter_every_state_is_listed(world: World) -> None:
    """Without states, revoked, superseded and expired keys are listed, too."""
    _one_of_each_state(world)
    world.clock.advance(HOUR)
    found = world.page(owner_id="states").api_keys
    assert len(found) == 7
    assert {api_key.state for api_key in found} == {1, 2, 3, 4, 5}


def test_a_state_said_often_counts_once(world: World) -> None:
    """A repeated state counts once, up to the maximum of entries."""
    world.create(name="alone")
    assert names(world, project_id="acme", states=["STATE_ACTIVE"] * ENTRIES["states"]) == ["alone"]


def test_an_empty_project_is_the_callers_own(shelf: World) -> None:
    """Without project_id, a project's caller sees its own keys, and an operator those of all projects."""
    reader = shelf.caller("tumbler:keys:read", project_id="beta")
    assert sorted(names(shelf, reader)) == ["Straße", "caller"]
    assert {api_key.project_id for api_key in shelf.page().api_keys} == {"acme", "beta", "tumbler"}
    inner = shelf.caller("tumbler:keys:read", project_id="tumbler")
    assert {api_key.project_id for api_key in shelf.page(inner).api_keys} == {"acme", "beta", "tumbler"}


def test_naming_another_project_is_denied(shelf: World) -> None:
    """A caller can name its own project and no other, whether that exists or not."""
    reader = shelf.caller("tumbler:keys:read", project_id="beta")
    assert sorted(names(shelf, reader, project_id="beta")) == ["Straße", "caller"]
    for project in ("acme", "nobody", "tumbler"):
        refused = shelf.refused("List", pb.ListRequest(project_id=project), reader)
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OTHER_PROJECT")


SORTED = {
    "": ["d", "c", "B", "á", "a"],
    "create_time": ["a", "á", "B", "c", "d"],
    "create_time asc": ["a", "á", "B", "c", "d"],
    "create_time desc": ["d", "c", "B", "á", "a"],
    "name": ["B", "a", "c", "d", "á"],
    "name asc": ["B", "a", "c", "d", "á"],
    "name desc": ["á", "d", "c", "a", "B"],
    "expire_time": ["d", "c", "B", "á", "a"],
    "expire_time asc": ["d", "c", "B", "á", "a"],
    "expire_time desc": ["a", "á", "B", "c", "d"],
    "last_used_time": ["c", "á", "d", "a", "B"],
    "last_used_time asc": ["c", "á", "d", "a", "B"],
    "last_used_time desc": ["B", "a", "d", "á", "c"],
}


@pytest.mark.parametrize("order_by", SORTED, ids=lambda order_by: order_by or "nothing said")
def test_keys_come_in_the_order_asked_for(world: World, order_by: str) -> None:
    """By default newest first; names by code point; keys without expiry last; keys never used first."""
    used = {"á": 1, "d": 2, "a": 3, "B": 4}
    for number, name in enumerate(["a", "á", "B", "c", "d"]):
        life = lasting(10 * DAY - number * DAY - number * SECOND) if name != "a" else None
        key_id = world.create(name=name * 3, ttl=life).api_key.id
        # No RPC writes last_used_time: the server does, in batches.
        query = ApiKeyRow.update(last_used_time=used.get(name, 0)).where(ApiKeyRow.id == key_id)
        world.core.store.write_serialized(lambda transaction, query=query: transaction.run(query))
        world.clock.advance(SECOND)
    expected = [name * 3 for name in SORTED[order_by]]
    assert names(world, project_id="acme", order_by=order_by) == expected
    assert names(world, project_id="acme", order_by=order_by, page_size=2) == expected[:2]


def test_names_compare_by_code_point(world: World) -> None:
    """Names are ordered by code point on every database."""
    given = [
        "Zed",
        "abc",
        "Abc",
        "z9z",
        "z10",
        "Éric",
        "éric",
        "ﾟｱｱ",
        "🔑🔑🔑",
        "  a",
        "~~~",
        "_-_",
        "a-b",
        "a b",
        "ab ",
    ]
    for name in given:
        world.create(name=name)
    assert names(world, project_id="acme", order_by="name") == sorted(given)
    assert names(world, project_id="acme", order_by="name desc") == sorted(given, reverse=True)


@pytest.mark.parametrize("order_by", ["create_time", "name", "expire_time", "last_used_time"])
def test_ties_are_broken_by_id(world: World, order_by: str) -> None:
    """Keys with equal sort values are ordered by ID, in reverse with ` desc`."""
    ids = sorted(world.create().api_key.id for _ in range(5))
    assert [key.id for key in world.page(project_id="acme", order_by=order_by).api_keys] == ids
    falling = world.page(project_id="acme", order_by=f"{order_by} desc").api_keys
    assert [key.id for key in falling] == ids[::-1]


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"project_id": "-"}, "project_id"),
    ({"environment_id": "a b"}, "environment_id"),
    ({"owner_id": "o" * 256}, "owner_id"),
    ({"owner_id": "\x00"}, "owner_id"),
    ({"scope": "s" * 129}, "scope"),
    ({"scope": "\x00"}, "scope"),
    ({"search": "s" * 256}, "search"),
    ({"search": "\x00"}, "search"),
    ({"search": "a\ntmb"}, "search"),
    ({"states": ["STATE_ACTIVE", "STATE_UNSPECIFIED"]}, "states[1]"),
    ({"states": [99]}, "states[0]"),
    ({"order_by": "id"}, "order_by"),
    ({"order_by": "secret_hash"}, "order_by"),
    ({"order_by": "NAME"}, "order_by"),
    ({"order_by": "name DESC"}, "order_by"),
    ({"order_by": "name  desc"}, "order_by"),
    ({"order_by": "name desc "}, "order_by"),
    ({"order_by": "name, id"}, "order_by"),
    ({"order_by": "name;"}, "order_by"),
    ({"page_size": -1}, "page_size"),
    ({"skip": -1}, "skip"),
    ({"skip": 10_001}, "skip"),
    ({"page_token": "garbage"}, "page_token"),
]


@pytest.mark.parametrize(
    ("fields", "path"), INVALID, ids=[f"{path}={next(iter(fields.values()))!a:.20}" for fields, path in INVALID]
)
def test_a_list_that_cannot_be_meant_is_refused(world: World, fields: dict[str, Any], path: str) -> None:
    """An invalid field is INVALID_ARGUMENT and named; nothing is guessed or ignored."""
    refused = world.refused("List", pb.ListRequest(**fields))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
