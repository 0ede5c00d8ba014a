"""The log: each change has exactly its event, a refused one has none, and no secret is stored."""

import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tests.harness import World, at, forged, lasting
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR
from tumbler_server.store.models import MODELS, EventRow


def told(event: EventRow) -> tuple[str, str, dict[str, str]]:
    """Return an event's type, key ID and detail."""
    name = event_pb2.KeyEventType.Name(event.type).removeprefix("KEY_EVENT_TYPE_")
    return name, event.key_id, json.loads(event.detail)


class Since:
    """The events after a moment."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = len(world.events())

    def told(self) -> list[tuple[str, str, dict[str, str]]]:
        """Return the events since then."""
        return [told(event) for event in self._world.events()[self._number :]]


def test_the_first_event_is_the_first_key(world: World) -> None:
    """The log begins at revision 1 with the creation of the first key, which has no actor key."""
    (first,) = world.events()
    assert first.revision == 1
    assert told(first) == (
        "CREATED",
        keyformat.parse(world.operator).id,
        {"new.name": "first operator", "new.scopes": "tumbler:*"},
    )
    assert (first.actor_key_id, first.actor_name) == ("", "tumbler-server init")


def test_an_event_says_who_changed_what_and_when(world: World) -> None:
    """Each event has key, project, environment, time, and the calling key with its name at that time."""
    caller = world.create(name="robot", scopes=["tumbler:keys:create"])
    world.clock.advance(HOUR)
    made = world.create(caller.key, environment_id="live").api_key
    event = world.events()[-1]
    assert (event.key_id, event.project_id, event.environment_id) == (made.id, "acme", "live")
    assert (event.actor_key_id, event.actor_name) == (caller.api_key.id, "robot")
    assert event.time == world.clock.now
    assert len(bytes(event.hash)) == 32


def test_create_leaves_created(world: World) -> None:
    """A Create has one CREATED event with every field that was given or has a default."""
    since = Since(world)
    fields: dict[str, Any] = {
        "owner_id": "alice",
        "scopes": ["a:b", "c:*"],
        "metadata": {"k": "v", "ж": "ж"},
        "allowed_cidrs": ["192.0.2.1", "2001:db8::/32"],
        "expire_time": at(2**51),
        "rotation": {"interval": Duration(seconds=90_000, nanos=500_000_000)},
    }
    key_id = world.create(**fields).api_key.id
    detail = {
        "new.name": "default",
        "new.owner_id": "alice",
        "new.scopes": "a:b,c:*",
        "new.metadata": '{"k": "v", "ж": "ж"}',
        "new.allowed_cidrs": "192.0.2.1/32,2001:db8::/32",
        "new.expire_time": "2041-05-10T11:56:53.685248Z",
        "new.rotation.interval": "90000.5s",
    }
    assert since.told() == [("CREATED", key_id, detail)]


UPDATES: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"name": "after"}, {"fields": "name", "old.name": "default", "new.name": "after"}),
    ({"owner_id": "bob"}, {"fields": "owner_id", "old.owner_id": "alice", "new.owner_id": "bob"}),
    ({"owner_id": ""}, {"fields": "owner_id", "old.owner_id": "alice"}),
    (
        {"scopes": ["c:d", "a:b", "x:y"]},
        {"fields": "scopes", "old.scopes": "a:b,x:y", "new.scopes": "c:d,a:b,x:y", "scopes_added": "c:d"},
    ),
    (
        {"scopes": ["e:f", "g:h"]},
        {
            "fields": "scopes",
            "old.scopes": "a:b,x:y",
            "new.scopes": "e:f,g:h",
            "scopes_added": "e:f,g:h",
            "scopes_removed": "a:b,x:y",
        },
    ),
    ({"scopes": ["x:y", "a:b"]}, {"fields": "scopes", "old.scopes": "a:b,x:y", "new.scopes": "x:y,a:b"}),
    ({"scopes": []}, {"fields": "scopes", "old.scopes": "a:b,x:y", "scopes_removed": "a:b,x:y"}),
    ({"metadata": {"note": "2"}}, {"fields": "metadata", "new.metadata": '{"note": "2"}'}),
    ({"allowed_cidrs": ["192.0.2.1"]}, {"fields": "allowed_cidrs", "new.allowed_cidrs": "192.0.2.1/32"}),
    ({"expire_time": at(2**51)}, {"fields": "expire_time", "new.expire_time": "2041-05-10T11:56:53.685248Z"}),
    ({"rotation": {"interval": lasting(DAY)}}, {"fields": "rotation", "new.rotation.interval": "86400s"}),
    (
        {"name": "after", "owner_id": "alice", "metadata": {"k": "v"}},
        {"fields": "name,metadata", "old.name": "default", "new.name": "after", "new.metadata": '{"k": "v"}'},
    ),
]


@pytest.mark.parametrize(("fields", "detail"), UPDATES)
def test_update_leaves_updated(world: World, fields: dict[str, Any], detail: dict[str, str]) -> None:
    """An Update has one UPDATED event with the fields that changed, with their old and new values."""
    key_id = world.create(owner_id="alice", scopes=["a:b", "x:y"]).api_key.id
    since = Since(world)
    world.update(key_id, *fields, **fields)
    assert since.told() == [("UPDATED", key_id, detail)]


def test_an_event_is_never_large(world: World) -> None:
    """An event holds the length and digest of a long value."""
    long = '"' * 1_000
    key_id = world.create(metadata={f"k{number}": long for number in range(13)}).api_key.id
    since = Since(world)
    world.update(key_id, metadata={f"k{number}": long[1:] for number in range(13)})
    ((_, _, detail),) = since.told()
    assert detail["old.metadata"].startswith("(26,")
    assert "characters, sha256:" in detail["new.metadata"]
    assert max(len(event.detail) for event in world.events()) < 1_000


def test_set_active_leaves_what_it_did(world: World) -> None:
    """SetActive has one DEACTIVATED or ACTIVATED event, by ID or by name."""
    key_id = world.create(name="worker").api_key.id
    since = Since(world)
    world.set_active(key_id, False)
    target = {"project_id": "acme", "name": "worker"}
    world.call("SetActive", pb.SetActiveRequest(by_name=target, active=True))
    assert since.told() == [("DEACTIVATED", key_id, {}), ("ACTIVATED", key_id, {})]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({}, {"reason": "unspecified"}),
        ({"reason": "REVOKE_REASON_COMPROMISED"}, {"reason": "compromised"}),
        ({"reason": "REVOKE_REASON_SUPERSEDED"}, {"reason": "superseded"}),
        ({"reason": "REVOKE_REASON_OWNER_LEFT"}, {"reason": "owner_left"}),
        ({"reason": "REVOKE_REASON_UNUSED"}, {"reason": "unused"}),
        ({"reason": "REVOKE_REASON_OTHER", "comment": "see 42"}, {"reason": "other", "comment": "see 42"}),
    ],
)
def test_revoke_leaves_revoked(world: World, fields: dict[str, Any], detail: dict[str, str]) -> None:
    """A Revoke has one REVOKED event with reason and comment."""
    key_id = world.create().api_key.id
    since = Since(world)
    world.revoke(key_id, **fields)
    assert since.told() == [("REVOKED", key_id, detail)]


def test_rotate_leaves_created_and_rotated(world: World) -> None:
    """A Rotate has CREATED for the successor and then ROTATED for the old key, each with the other's ID."""
    old = world.create().api_key.id
    since = Since(world)
    rotated = world.rotate(old, grace_period=lasting(DAY))
    new = rotated.api_key.id
    assert since.told() == [
        ("CREATED", new, {"new.name": "default", "replaces_key_id": old}),
        ("ROTATED", old, {"replaced_by_key_id": new, "grace_expire_time": "2030-01-02T00:00:00Z"}),
    ]


def _refusals(world: World) -> list[tuple[str, Message, str | None]]:
    living = world.create(name="living").api_key
    revoked = world.create().api_key.id
    world.revoke(revoked)
    powerless = world.caller("*")
    foreign = world.caller("tumbler:*", project_id="beta")
    return [
        ("Create", pb.CreateRequest(project_id="acme", name="ab"), None),
        ("Create", pb.CreateRequest(project_id="acme"), powerless),
        ("Create", pb.CreateRequest(project_id="acme"), foreign),
        ("Create", pb.CreateRequest(project_id="acme"), ""),
        ("Update", pb.UpdateRequest(api_key={"id": living.id, "name": "after", "etag": '"0"'}), None),
        ("Update", pb.UpdateRequest(api_key={"id": revoked, "name": "after"}), None),
        ("Update", pb.UpdateRequest(api_key={"id": living.id, "name": "after"}), foreign),
        ("SetActive", pb.SetActiveRequest(key_id=revoked, active=True), None),
        ("SetActive", pb.SetActiveRequest(key_id=living.id), powerless),
        ("Revoke", pb.RevokeRequest(key_id=living.id, reason=99), None),
        ("Revoke", pb.RevokeRequest(key_id=living.id), foreign),
        ("Rotate", pb.RotateRequest(key_id=revoked), None),
        ("Rotate", pb.RotateRequest(key_id=living.id, grace_period=lasting(-1)), None),
        ("Rotate", pb.RotateRequest(key_id=living.id), powerless),
    ]


def test_a_refused_change_leaves_no_event(world: World) -> None:
    """A refused change has no event, and neither has a read."""
    refusals = _refusals(world)
    before = [event.revision for event in world.events()]
    for method, request, key in refusals:
        world.refused(method, request, key)
    world.page()
    world.verdict("garbage")
    assert [event.revision for event in world.events()] == before


def _history(world: World) -> list[str]:
    """Make a long mixed history, and return every key that was shown."""
    shown = [world.operator]
    for number in range(6):
        created = world.create(
            name=f"worker {number}", scopes=["a:b"], metadata={"n": "1"}, prefix="acme_live" if number % 2 else ""
        )
        shown.append(created.key)
        key_id = created.api_key.id
        world.clock.advance(HOUR)
        world.verdict(created.key)
        world.verdict(forged(created.key))
        world.update(key_id, "owner_id", "scopes", owner_id="ünï", scopes=["a:c"])
        world.set_active(key_id, False)
        world.set_active(key_id, False)
        if number % 3:
            world.set_active(key_id, True)
            rotated = world.rotate(key_id, request_id=f"123e4567-e89b-42d3-a456-42661417400{number}")
            world.rotate(key_id, request_id=f"123e4567-e89b-42d3-a456-42661417400{number}")
            shown.append(rotated.key)
            world.verdict(rotated.key)
        if number % 2:
            world.revoke(key_id, comment="it’s over 🔑")
    for method, request, key in _refusals(world):
        world.refused(method, request, key)
    told = world.create(rotation={"interval": lasting(HOUR), "webhook_url": "https://hooks.example.com/"})
    world.clock.advance(HOUR)
    world.turn()
    token = world.scheduler.dispatch._claim_token(told.api_key.id, world.events()[-1].revision)
    shown += [told.key, world.call("ClaimRotation", pb.ClaimRotationRequest(claim_token=token), "").key]
    world.turn()
    world.core.rehasher.drain()
    return shown


def test_the_chain_holds_after_a_long_history(world: World, twin: World) -> None:
    """After all kinds of changes by two servers, revisions have no gap and the audit finds no problem."""
    _history(world)
    twin.clock.advance(DAY)
    for api_key in world.page(states=["STATE_ACTIVE"], project_id="acme", page_size=3).api_keys:
        twin.revoke(api_key.id)
        world.create()
    events = world.events()
    assert [event.revision for event in events] == list(range(1, len(events) + 1))
    found = audit.run(world.core.store)
    assert found, found.problems
    assert found.events == len(events)


def test_a_changed_event_shows(world: World) -> None:
    """A rewritten event fails the audit."""
    key_id = world.create().api_key.id
    world.revoke(key_id)
    event = EventRow.update(actor_name="somebody else").where(EventRow.revision == 2)
    world.core.store.write_serialized(lambda transaction: transaction.run(event))
    assert not audit.run(world.core.store)


def test_nothing_stored_holds_a_secret(world: World) -> None:
    """No column of any table holds a key, a secret or half of a secret."""
    shown = _history(world)
    secrets = [keyformat.parse(text).secret for text in shown]
    assert len(set(secrets)) == len(shown) > 9
    world.core.roster.look()
    stored = []
    for model in MODELS:
        names = ", ".join(field.column_name for field in model._meta.sorted_fields)
        rows = world.core.store.read(f"SELECT {names} FROM {model._meta.table_name}")  # noqa: S608 - names of our own
        assert rows
        stored += [bytes(value) if isinstance(value, memoryview) else value for row in rows for value in row]
    text = "\n".join(value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in stored)
    assert all(keyformat.parse(one).id in text for one in shown)
    for secret in secrets:
        assert secret[:20] not in text
        assert secret[-20:] not in text
