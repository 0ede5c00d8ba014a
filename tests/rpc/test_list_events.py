"""ListEvents: the audit trail, page by page."""

from typing import Any

import grpc
import pytest

from tests.harness import World, at
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler_server.clock import DAY, HOUR, SECOND
from tumbler_server.events.log import Actor, Change, EventType, extend
from tumbler_server.events.retention import Retention
from tumbler_server.limits import ANSWER_BYTES

LISTER = "tumbler:events:read"


def listed(world: World, key: str | None = None, **fields: Any) -> pb.ListEventsResponse:
    """Return a page of events."""
    return world.call("ListEvents", pb.ListEventsRequest(**fields), key)


def told(response: pb.ListEventsResponse) -> list[tuple[str, str]]:
    """Return type and key ID of each event of a page."""
    return [
        (event_pb2.KeyEventType.Name(event.type).removeprefix("KEY_EVENT_TYPE_"), event.key_id)
        for event in response.events
    ]


def revisions(response: pb.ListEventsResponse) -> list[int]:
    """Return the revision of each event of a page."""
    return [event.revision for event in response.events]


def pages(world: World, key: str | None = None, **fields: Any) -> list[list[int]]:
    """Return the revisions on each page, from the first to the last."""
    found, token = [], ""
    while True:
        page = listed(world, key, **fields, page_token=token)
        found.append(revisions(page))
        token = page.next_page_token
        if not token:
            return found


def crowd(world: World, number: int) -> None:
    """Append ``number`` events of project ``acme`` in one transaction."""
    change = Change(EventType.UPDATED, "0" * 16, "acme", "", world.clock.now, Actor("", "a test"))
    world.core.store.write_serialized(lambda transaction: extend(transaction, [change] * number))


class TestEvents:
    """What an event contains."""

    def test_the_call(self, world: World) -> None:
        """An event has its call's address and its request ID, from request_id or from `x-request-id`."""
        named = "123e4567-E89b-42d3-a456-426614174000"
        key_id = world.create(request_id=named).api_key.id
        bearer = ("authorization", f"Bearer {world.operator}")
        active = False
        for header in ("from a proxy", "x" * 128, "x" * 129, "tab\tbed", ""):
            request = pb.SetActiveRequest(key_id=key_id, active=active)
            world.call("SetActive", request, metadata=(bearer, ("x-request-id", header)))
            active = not active
        told = [(event.request_id, event.client_address) for event in listed(world, key_id=key_id).events]
        assert told == [(name, "127.0.0.1") for name in (named.lower(), "from a proxy", "x" * 128, "", "", "")]

    def test_whole(self, world: World) -> None:
        """An event has its revision, type, key, project, environment, time, actor, detail and hash."""
        caller = world.create(name="robot", scopes=["tumbler:keys:*"])
        key_id = world.create(environment_id="live").api_key.id
        world.clock.advance(HOUR)
        world.revoke(key_id, caller.key, reason="REVOKE_REASON_OTHER", comment="see 42")
        (event,) = listed(world, key_id=key_id, types=["KEY_EVENT_TYPE_REVOKED"]).events
        stored = world.events()[-1]
        assert event == event_pb2.KeyEvent(
            revision=4,
            type="KEY_EVENT_TYPE_REVOKED",
            key_id=key_id,
            project_id="acme",
            environment_id="live",
            time=at(world.clock.now),
            actor={"key_id": caller.api_key.id, "name": "robot"},
            detail={"reason": "other", "comment": "see 42"},
            hash=bytes(stored.hash),
            client_address="127.0.0.1",
            record_digest=bytes(stored.record)[:32],
        )
        assert len(event.hash) == 32

    def test_every_change_has_an_actor(self, world: World) -> None:
        """Every change of a key names its actor in the event, with the actor's name at that time."""
        caller = world.create(name="robot", scopes=["tumbler:keys:*"])
        made = world.create(caller.key).api_key
        world.update(made.id, "name", key=caller.key, name="after")
        world.set_active(made.id, False, caller.key)
        world.set_active(made.id, True, caller.key)
        new = world.rotate(made.id, caller.key).api_key.id
        world.revoke(new, caller.key)
        world.update(caller.api_key.id, "name", name="renamed")
        events = listed(world, project_id="acme").events
        assert [event_pb2.KeyEventType.Name(event.type)[15:] for event in events] == [
            "CREATED",
            "CREATED",
            "UPDATED",
            "DEACTIVATED",
            "ACTIVATED",
            "CREATED",
            "ROTATED",
            "REVOKED",
            "UPDATED",
        ]
        operator = keyformat.parse(world.operator).id
        assert [(event.actor.key_id, event.actor.name) for event in events] == [
            (operator, "first operator"),
            *[(caller.api_key.id, "robot")] * 7,
            (operator, "first operator"),
        ]

    def test_the_first(self, world: World) -> None:
        """The trail begins with the creation of the first key, which has no actor key."""
        first = listed(world).events[0]
        assert (first.revision, first.actor.key_id, first.actor.name) == (1, "", "tumbler-server init")

    def test_in_commit_order(self, world: World, twin: World) -> None:
        """Events are listed oldest first, in commit order, whichever server committed them."""
        ids = [(twin if number % 2 else world).create().api_key.id for number in range(4)]
        world.clock.advance(-HOUR)
        ids.append(world.create().api_key.id)
        assert [key_id for _, key_id in told(listed(twin, project_id="acme"))] == ids


class TestFilters:
    """Filters."""

    def test_key(self, world: World) -> None:
        """With key_id, only events of that key are listed; an unknown key has none."""
        one, other = (world.create().api_key.id for _ in range(2))
        world.revoke(other)
        world.set_active(one, False)
        assert told(listed(world, key_id=one)) == [("CREATED", one), ("DEACTIVATED", one)]
        assert listed(world, key_id="x" * 16) == pb.ListEventsResponse()

    def test_types(self, world: World) -> None:
        """With types, only events of those types are listed, in order."""
        one, other = (world.create().api_key.id for _ in range(2))
        world.set_active(one, False)
        world.revoke(other)
        revoked, deactivated = "KEY_EVENT_TYPE_REVOKED", "KEY_EVENT_TYPE_DEACTIVATED"
        assert told(listed(world, types=[revoked])) == [("REVOKED", other)]
        both = told(listed(world, types=[revoked, deactivated, revoked]))
        assert both == [("DEACTIVATED", one), ("REVOKED", other)]
        assert listed(world, types=["KEY_EVENT_TYPE_ROTATION_DUE"]) == pb.ListEventsResponse()

    def test_since(self, world: World) -> None:
        """With since_time, only events at or after that time are listed, to the microsecond."""
        ids = []
        for _ in range(3):
            ids.append(world.create().api_key.id)
            world.clock.advance(HOUR)
        second = world.clock.now - 2 * HOUR
        for since, expected in [
            (at(0), ids),
            (at(second - 1), ids[1:]),
            (at(second), ids[1:]),
            (at(second + 1), ids[2:]),
            (at(world.clock.now), []),
            (at(world.clock.now + 9_000 * DAY), []),
        ]:
            assert [key_id for _, key_id in told(listed(world, project_id="acme", since_time=since))] == expected
        finer = at(second)
        finer.nanos += 1
        assert [key_id for _, key_id in told(listed(world, project_id="acme", since_time=finer))] == ids[2:]

    def test_together(self, world: World) -> None:
        """An event must match all filters."""
        one, other = (world.create().api_key.id for _ in range(2))
        world.set_active(one, False)
        world.clock.advance(HOUR)
        for key_id in (one, other):
            world.revoke(key_id)
        fields = {"project_id": "acme", "key_id": one, "since_time": at(world.clock.now)}
        assert told(listed(world, **fields)) == [("REVOKED", one)]
        assert not listed(world, **fields, types=["KEY_EVENT_TYPE_DEACTIVATED"]).events
        assert not listed(world, **{**fields, "project_id": "beta"}).events


class TestProjects:
    """Which events a caller can see."""

    @pytest.fixture
    def ids(self, world: World) -> dict[str, str]:
        """Return the ID of one key in each of two projects."""
        return {project: world.create(project_id=project).api_key.id for project in ("acme", "beta")}

    def test_operators(self, world: World, ids: dict[str, str]) -> None:
        """A caller of the reserved project sees all events, or those of one project that it names."""
        operator = keyformat.parse(world.operator).id
        assert [key_id for _, key_id in told(listed(world))] == [operator, ids["acme"], ids["beta"]]
        assert [key_id for _, key_id in told(listed(world, project_id="beta"))] == [ids["beta"]]
        assert [key_id for _, key_id in told(listed(world, project_id="tumbler"))] == [operator]
        assert not listed(world, project_id="nobody").events

    def test_own(self, world: World, ids: dict[str, str]) -> None:
        """Any other caller sees the events of its own project, whether it names the project or not."""
        reader = world.caller(LISTER)
        expected = [("CREATED", ids["acme"]), ("CREATED", keyformat.parse(reader).id)]
        assert told(listed(world, reader)) == expected
        assert told(listed(world, reader, project_id="acme")) == expected

    def test_other(self, world: World, ids: dict[str, str]) -> None:
        """Naming another project is refused, and a key of another project has no events, like an unknown one."""
        reader = world.caller(LISTER)
        for project in ("beta", "tumbler", "nobody"):
            refused = world.refused("ListEvents", pb.ListEventsRequest(project_id=project), reader)
            assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OTHER_PROJECT")
        for key_id in (ids["beta"], keyformat.parse(world.operator).id, "x" * 16):
            assert listed(world, reader, key_id=key_id) == pb.ListEventsResponse()


class TestPages:
    """Paging."""

    @pytest.mark.parametrize("fields", [{}, {"project_id": "acme"}, {"types": ["KEY_EVENT_TYPE_CREATED"]}])
    def test_together_they_are_all(self, world: World, fields: dict[str, Any]) -> None:
        """The pages together hold exactly what one large page holds."""
        for number in range(7):
            world.create(project_id=("acme", "beta")[number % 2])
            world.set_active(world.create().api_key.id, False)
        (whole,) = pages(world, **fields, page_size=1_000)
        assert whole == sorted(whole)
        for size in (1, 2, 3, len(whole)):
            found = pages(world, **fields, page_size=size)
            assert [revision for page in found for revision in page] == whole
            assert {len(page) for page in found[:-1]} <= {size}
            assert found[-1]

    def test_sizes(self, world: World) -> None:
        """page_size 0 means 20, and more than 1,000 counts as 1,000."""
        crowd(world, 1_002)
        sizes = {0: 20, 1: 1, 999: 999, 1_000: 1_000, 1_001: 1_000, 2**31 - 1: 1_000}
        for page_size, expected in sizes.items():
            page = listed(world, project_id="acme", page_size=page_size)
            assert len(page.events) == expected
            assert page.next_page_token

    def test_changes_between_pages(self, world: World) -> None:
        """Events between two pages move nothing and are listed at the end."""
        for _ in range(4):
            world.create()
        first = listed(world, project_id="acme", page_size=2)
        world.create()
        second = listed(world, project_id="acme", page_size=2, page_token=first.next_page_token)
        third = listed(world, project_id="acme", page_size=2, page_token=second.next_page_token)
        assert [revisions(page) for page in (first, second, third)] == [[2, 3], [4, 5], [6]]
        assert not third.next_page_token

    def test_removed_between_pages(self, world: World) -> None:
        """If events are removed by retention between two pages, the next page begins with the oldest event kept."""
        for _ in range(6):
            world.create()
            world.clock.advance(DAY)
        first = listed(world, page_size=2)
        Retention(world.core.store, world.clock, 3 * DAY - 1).remove()
        assert revisions(listed(world, page_size=10, page_token=first.next_page_token)) == [6, 7]
        assert revisions(listed(world)) == [6, 7]

    def test_since_and_pages(self, world: World) -> None:
        """With since_time, each page's request repeats it, and the pages form one list."""
        for _ in range(5):
            world.create()
            world.clock.advance(HOUR)
        since = at(world.clock.now - 4 * HOUR)
        assert pages(world, since_time=since, page_size=2) == [[3, 4], [5, 6]]

    def test_another_server(self, world: World, twin: World) -> None:
        """A list can be continued at another server and after a restart."""
        for _ in range(3):
            world.create()
        token = listed(world, page_size=1).next_page_token
        world.reopen()
        for server in (world, twin):
            assert revisions(listed(server, page_token=token)) == [2, 3, 4]

    @pytest.mark.parametrize(
        "changed",
        [
            {"project_id": ""},
            {"project_id": "beta"},
            {"key_id": ""},
            {"key_id": "x" * 16},
            {"types": []},
            {"types": ["KEY_EVENT_TYPE_UPDATED"]},
            {"since_time": None},
            {"since_time": at(SECOND)},
        ],
        ids=lambda changed: str(*changed),
    )
    def test_bound_to_the_filter(self, world: World, changed: dict[str, Any]) -> None:
        """A page token is refused with a different filter; page_size and the order of types may differ."""
        key_id = world.create().api_key.id
        for number in range(2):
            world.set_active(key_id, bool(number))
        both = ["KEY_EVENT_TYPE_ACTIVATED", "KEY_EVENT_TYPE_DEACTIVATED"]
        fields = {"project_id": "acme", "key_id": key_id, "types": both, "since_time": at(0)}
        token = listed(world, **fields, page_size=1).next_page_token
        again = {**fields, "types": [both[1], both[0], both[1]], "page_size": 7, "page_token": token}
        assert revisions(listed(world, **again)) == [4]
        refused = world.refused("ListEvents", pb.ListEventsRequest(**{**fields, **changed, "page_token": token}))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_token"])

    def test_tokens_of_others(self, world: World) -> None:
        """A page token of another project's caller or another RPC, or an invalid one, is refused."""
        readers = {
            project: world.caller(LISTER, "tumbler:keys:read", project_id=project) for project in ("acme", "beta")
        }
        for reader in readers.values():
            assert not listed(world, reader).next_page_token
        world.create(project_id="beta")
        made = world.create()
        of_beta = listed(world, readers["beta"], page_size=1).next_page_token
        of_keys = world.page(readers["acme"], page_size=1).next_page_token
        assert listed(world, readers["beta"], page_token=of_beta).events
        for token in (of_beta, of_keys, made.consistency_token, "nonsense", of_beta[:-2], "A" * 5_000):
            refused = world.refused("ListEvents", pb.ListEventsRequest(page_token=token), readers["acme"])
            assert refused.fields == ["page_token"]
        of_events = listed(world, readers["acme"], page_size=1).next_page_token
        refused = world.refused("List", pb.ListRequest(page_token=of_events), readers["acme"])
        assert refused.fields == ["page_token"]


INVALID = [
    ({"project_id": "no spaces"}, ["project_id"]),
    ({"key_id": "short"}, ["key_id"]),
    ({"key_id": "x" * 17}, ["key_id"]),
    ({"types": [0]}, ["types[0]"]),
    ({"types": [1, 99, 2, -1]}, ["types[1]", "types[3]"]),
    ({"since_time": {"seconds": 253_402_300_800}}, ["since_time"]),
    ({"since_time": {"nanos": -1}}, ["since_time"]),
    ({"page_size": -1}, ["page_size"]),
    ({"key_id": "short", "types": [77], "page_size": -5}, ["key_id", "types[0]", "page_size"]),
]


@pytest.mark.parametrize(("fields", "named"), INVALID, ids=lambda value: str(value)[:40])
def test_invalid(world: World, fields: dict[str, Any], named: list[str]) -> None:
    """An invalid request is refused with the name of every invalid field."""
    refused = world.refused("ListEvents", pb.ListEventsRequest(**fields))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields == named


def test_large_events(world: World) -> None:
    """A page ends early, with a token, if the response would be too large; no event is skipped, no page is empty."""
    made = world.create().api_key.id
    large = {"scopes_added": "s" * 700_000}
    changes = [Change(EventType.UPDATED, made, "acme", "", world.clock(), Actor("", ""), large) for _ in range(9)]
    world.core.store.write_serialized(lambda transaction: extend(transaction, changes))
    request = pb.ListEventsRequest(key_id=made, page_size=1_000)
    sizes, revisions = [], []
    while True:
        page = world.call("ListEvents", request)
        assert page.ByteSize() <= ANSWER_BYTES.most
        sizes.append(len(page.events))
        revisions += [event.revision for event in page.events]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert sizes == [5, 4, 1]
    assert revisions == list(range(revisions[0], revisions[0] + 10))


def test_a_pasted_key_is_not_repeated(world: World) -> None:
    """A key in place of its ID is not repeated in the error."""
    made = world.create()
    refused = world.refused("ListEvents", pb.ListEventsRequest(key_id=made.key, page_token=made.key))
    assert refused.fields == ["key_id"]
    assert made.key not in str(refused.status)
    assert keyformat.parse(made.key).secret not in str(refused.status)


def test_extreme_times(world: World) -> None:
    """The first and the last timestamp that protobuf allows are accepted."""
    world.create()
    earliest = pb.ListEventsRequest(since_time={"seconds": -62_135_596_800})
    latest = pb.ListEventsRequest(since_time={"seconds": 253_402_300_799, "nanos": 999_999_999})
    assert len(world.call("ListEvents", earliest).events) == 2
    assert not world.call("ListEvents", latest).events
