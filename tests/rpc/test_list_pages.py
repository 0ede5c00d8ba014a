"""Paging of List: no key is skipped or repeated, and a token is valid only for its own list."""

from typing import Any

import grpc
import pytest

from tests.harness import World, lasting
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, SECOND
from tumbler_server.store.models import ApiKeyRow

ORDERS = [
    f"{name} {way}" for name in ("create_time", "name", "expire_time", "last_used_time") for way in ("asc", "desc")
]


def pages(world: World, key: str | None = None, **fields: Any) -> list[list[str]]:
    """Return the IDs on each page, from the first to the last."""
    found, token = [], ""
    while True:
        page = world.page(key, **fields, page_token=token)
        found.append([api_key.id for api_key in page.api_keys])
        token = page.next_page_token
        if not token:
            return found


def crowd(world: World, number: int) -> None:
    """Create ``number`` keys in project ``acme``, directly in the database."""
    (row,) = world.core.store.select(ApiKeyRow.select().where(ApiKeyRow.id == world.create().api_key.id))
    rows = [{**row.__data__, "id": f"{place:016}"} for place in range(number - 1)]

    def insert(transaction: Any) -> None:
        for begin in range(0, len(rows), 500):
            transaction.run(ApiKeyRow.insert_many(rows[begin : begin + 500]))

    world.core.store.write_serialized(insert)


@pytest.mark.parametrize("order_by", ["", *ORDERS])
def test_the_pages_together_are_the_whole_list(world: World, order_by: str) -> None:
    """The pages together hold what one large page holds, in every order, with ties across page boundaries."""
    for number in range(7):
        world.create(name=f"name {number // 3}", ttl=lasting(DAY) if number % 2 else None)
        world.clock.advance(SECOND * (number % 2))
    (whole,) = pages(world, project_id="acme", order_by=order_by, page_size=1_000)
    assert len(set(whole)) == 7
    for size in (1, 2, 3, 7):
        found = pages(world, project_id="acme", order_by=order_by, page_size=size)
        assert [key_id for page in found for key_id in page] == whole
        assert {len(page) for page in found[:-1]} <= {size}
        assert found[-1]


@pytest.mark.parametrize("order_by", ["", "create_time asc", "name asc", "name desc", "expire_time asc"])
def test_new_keys_between_pages_move_nothing(world: World, order_by: str) -> None:
    """Each key that existed at the first page is listed exactly once, wherever new keys appear meanwhile."""
    before = {world.create(name=f"name {number}", ttl=lasting(DAY + number)).api_key.id for number in range(6)}
    seen: list[str] = []
    token = ""
    for _ in range(20):
        page = world.page(project_id="acme", order_by=order_by, page_size=2, page_token=token)
        seen += [api_key.id for api_key in page.api_keys]
        token = page.next_page_token
        if not token:
            break
        world.clock.advance(-SECOND)  # older than all, then newer than all
        world.create(name="name 0 before", ttl=lasting(DAY))
        world.clock.advance(2 * SECOND)
        world.create(name="name 9 after", ttl=lasting(9 * DAY))
        world.clock.advance(-SECOND)
        if len(seen) >= 12:
            break  # new keys after the page are listed too, without end
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


def test_a_revoked_key_between_pages_moves_nothing(world: World) -> None:
    """A change of the last key of a page does not disturb the next page."""
    ids = sorted(world.create().api_key.id for _ in range(4))
    first = world.page(project_id="acme", order_by="create_time", page_size=2)
    world.revoke(first.api_keys[-1].id)
    token = first.next_page_token
    second = world.page(project_id="acme", order_by="create_time", page_size=2, page_token=token)
    assert [api_key.id for api_key in (*first.api_keys, *second.api_keys)] == ids


def test_a_page_has_20_keys_unless_said_and_1000_at_most(world: World) -> None:
    """page_size 0 means 20, and more than 1,000 counts as 1,000."""
    crowd(world, 1_002)
    sizes = {0: 20, 1: 1, 999: 999, 1_000: 1_000, 1_001: 1_000, 2**31 - 1: 1_000}
    for page_size, expected in sizes.items():
        page = world.page(project_id="acme", page_size=page_size)
        assert len(page.api_keys) == expected
        assert page.next_page_token


def test_the_last_page_has_no_token(world: World) -> None:
    """next_page_token is empty if no key follows, even after a full page."""
    for _ in range(4):
        world.create()
    first = world.page(project_id="acme", page_size=2)
    assert first.next_page_token
    second = world.page(project_id="acme", page_size=2, page_token=first.next_page_token)
    assert len(second.api_keys) == 2
    assert not second.next_page_token
    assert world.page(project_id="nobody") == pb.ListResponse()


def test_skip_counts_from_where_the_page_begins(world: World) -> None:
    """A page leaves out its first ``skip`` keys, counted from the beginning or from the page_token."""
    ids = sorted(world.create().api_key.id for _ in range(6))
    order = {"project_id": "acme", "order_by": "create_time"}
    assert pages(world, **order, skip=4) == [ids[4:]]
    first = world.page(**order, page_size=1, skip=1)
    assert [api_key.id for api_key in first.api_keys] == ids[1:2]
    second = world.page(**order, page_size=2, skip=2, page_token=first.next_page_token)
    assert [api_key.id for api_key in second.api_keys] == ids[4:6]
    assert world.page(**order, skip=6) == pb.ListResponse()
    assert world.page(**order, skip=10_000) == pb.ListResponse()


def test_total_size_counts_all_pages(world: World) -> None:
    """total_size is the number of matching keys on all pages, and 0 unless requested."""
    for number in range(5):
        world.create(owner_id="odd" if number % 2 else "even")
    first = world.page(project_id="acme", page_size=2)
    assert first.total_size == 0
    token = first.next_page_token
    second = world.page(project_id="acme", page_size=2, page_token=token, skip=1, show_total_size=True)
    assert second.total_size == 5
    assert world.page(owner_id="even", show_total_size=True).total_size == 3


def test_a_token_goes_with_what_may_change(world: World) -> None:
    """page_size, skip, show_total_size and the order of states may differ from page to page."""
    for _ in range(4):
        world.create()
    first = world.page(project_id="acme", states=["STATE_ACTIVE", "STATE_EXPIRED"], page_size=1)
    second = world.page(
        project_id="acme",
        states=["STATE_EXPIRED", "STATE_ACTIVE", "STATE_ACTIVE"],
        order_by="create_time desc",
        page_size=7,
        skip=1,
        show_total_size=True,
        page_token=first.next_page_token,
    )
    assert len(second.api_keys) == 2


FILTER = {"project_id": "acme", "environment_id": "live", "owner_id": "alice", "scope": "a:b", "search": "n"}


@pytest.mark.parametrize(
    "changed",
    [
        {"project_id": ""},
        {"project_id": "beta"},
        {"environment_id": ""},
        {"environment_id": "test"},
        {"owner_id": ""},
        {"owner_id": "bob"},
        {"scope": ""},
        {"scope": "a:c"},
        {"search": ""},
        {"search": "N"},
        {"states": ["STATE_ACTIVE"]},
        {"order_by": "name"},
        {"order_by": "create_time asc"},
    ],
    ids=lambda changed: "=".join(map(str, *changed.items())),
)
def test_a_token_is_bound_to_its_filter(world: World, changed: dict[str, Any]) -> None:
    """A page token is refused with a different filter or order."""
    for _ in range(2):
        world.create(name="name", environment_id="live", owner_id="alice", scopes=["a:b"])
    token = world.page(**FILTER, page_size=1).next_page_token
    assert world.page(**FILTER, page_token=token).api_keys
    refused = world.refused("List", pb.ListRequest(**{**FILTER, **changed, "page_token": token}))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])


def test_a_token_of_another_project_is_refused(world: World) -> None:
    """A page token of one project's caller is refused to another's, even if both left project_id empty."""
    tokens = {}
    readers = {}
    for project in ("acme", "beta"):
        world.create(project_id=project)
        readers[project] = world.caller("tumbler:keys:read", project_id=project)
        tokens[project] = world.page(readers[project], page_size=1).next_page_token
    crossed = pb.ListRequest(page_token=tokens["beta"])
    assert world.refused("List", crossed, readers["acme"]).fields == ["page_token"]
    assert world.refused("List", crossed).fields == ["page_token"]
    assert world.page(readers["beta"], page_token=tokens["beta"]).api_keys


def test_a_changed_token_is_refused(world: World) -> None:
    """A page token with a character changed, removed or added is refused, and so is a token of another kind."""
    created = [world.create() for _ in range(2)]
    token = world.page(project_id="acme", page_size=1).next_page_token
    others = [
        token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :] for place in range(len(token) - 1)
    ]
    others += [token[1:], token[:-2], token + "A", token.upper(), "A" * 5_000, "é", ".", created[0].consistency_token]
    for other in others:
        refused = world.refused("List", pb.ListRequest(project_id="acme", page_token=other))
        assert refused.fields == ["page_token"]


def test_a_token_outlives_the_process(world: World, twin: World) -> None:
    """A list can be continued at another server of the installation and after a restart."""
    ids = sorted(world.create().api_key.id for _ in range(3))
    first = world.page(project_id="acme", order_by="name", page_size=1)
    world.reopen()
    for server in (world, twin):
        rest = server.page(project_id="acme", order_by="name", page_token=first.next_page_token)
        assert [api_key.id for api_key in rest.api_keys] == ids[1:]
