"""Update."""

from typing import Any

import grpc
import pytest

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, SECOND

NOW = 1_893_456_000 * SECOND

EVERYTHING: dict[str, Any] = {
    "name": "before",
    "owner_id": "alice",
    "scopes": ["a:read", "b:read"],
    "metadata": {"team": "one"},
    "allowed_cidrs": ["192.0.2.0/24"],
    "expire_time": at(NOW + DAY),
    "rotation": {"interval": lasting(DAY)},
}

ANOTHER: dict[str, Any] = {
    "name": "after",
    "owner_id": "bob",
    "scopes": ["b:read", "c:*"],
    "metadata": {"other": "two", "team": "two"},
    "allowed_cidrs": ["2001:db8::/32"],
    "expire_time": at(NOW + 7 * DAY),
    "rotation": {"interval": lasting(2 * DAY)},
}


def changed(before: api_key_pb2.ApiKey, after: api_key_pb2.ApiKey) -> set[str]:
    """Return the names of the fields in which two records differ."""
    return {name for name in before.DESCRIPTOR.fields_by_name if getattr(before, name) != getattr(after, name)}


@pytest.mark.parametrize("field", EVERYTHING)
def test_a_named_field_changes_and_nothing_else(world: World, field: str) -> None:
    """The field in the mask takes its new value; all others stay, even if the request has values for them."""
    before = world.create(**EVERYTHING, environment_id="live", prefix="ship").api_key
    world.clock.advance(HOUR)
    answer = world.update(before.id, field, **ANOTHER)
    expected = api_key_pb2.ApiKey(**{field: ANOTHER[field]})
    if field == "rotation":
        expected.rotation.next_time.CopyFrom(at(world.clock.now + 2 * DAY))
    assert getattr(answer.api_key, field) == getattr(expected, field)
    assert changed(before, answer.api_key) == {field, "update_time", "etag"}
    assert answer.api_key.update_time == at(world.clock.now)
    assert world.get(before.id) == answer.api_key
    assert not answer.webhook_secret


@pytest.mark.parametrize("field", EVERYTHING)
def test_a_named_field_that_is_not_set_is_cleared(world: World, field: str) -> None:
    """A field in the mask without a value is cleared: the name becomes `default`, expiry and schedule are removed."""
    before = world.create(**EVERYTHING).api_key
    after = world.update(before.id, field).api_key
    expected = api_key_pb2.ApiKey(name="default") if field == "name" else api_key_pb2.ApiKey()
    assert getattr(after, field) == getattr(expected, field)
    assert field not in {descriptor.name for descriptor, _ in after.ListFields()} - {"name"}
    assert changed(before, after) == {field, "etag"}  # update_time too, but the clock is frozen
    assert world.get(before.id) == after


def test_without_a_mask_what_is_set_changes(world: World) -> None:
    """Without a mask, Update changes the updatable fields that have a value (AIP-134), and clears none."""
    before = world.create(**EVERYTHING).api_key
    world.clock.advance(1)
    after = world.update(before.id, name="after", metadata={"only": "this"}).api_key
    assert (after.name, dict(after.metadata)) == ("after", {"only": "this"})
    assert changed(before, after) == {"name", "metadata", "update_time", "etag"}


def test_what_get_returned_can_be_sent_back(world: World) -> None:
    """A record that was read, edited and sent back whole, without a mask, changes only what was edited."""
    edited = world.get(world.create(**EVERYTHING).api_key.id)
    edited.owner_id = "carol"
    after = world.call("Update", pb.UpdateRequest(api_key=edited)).api_key
    assert changed(edited, after) == {"etag"}


def test_all_fields_change_at_once(world: World) -> None:
    """An Update of all seven fields is one change with one event."""
    before = world.create(**EVERYTHING).api_key
    events = len(world.events())
    after = world.update(before.id, *EVERYTHING, **ANOTHER).api_key
    assert changed(before, after) == {*EVERYTHING, "etag"}
    assert len(world.events()) == events + 1


@pytest.mark.parametrize(
    "path",
    [
        *("id", "project_id", "environment_id", "key_prefix", "state", "create_time", "created_by", "etag"),
        *("metadata.team", "rotation.interval", "expire_time.seconds", "scopes[0]", "*", "", "Name", "names", "name "),
    ],
)
def test_only_the_seven_fields_can_be_named(world: World, path: str) -> None:
    """Any other path, such as a part of a field or `*`, is INVALID_ARGUMENT, and nothing changes."""
    before = world.create(**EVERYTHING).api_key
    request = pb.UpdateRequest(api_key={"id": before.id, "name": "after"}, update_mask={"paths": ["name", path]})
    refused = world.refused("Update", request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields == ["update_mask.paths[1]"]
    assert world.get(before.id) == before


def test_an_update_must_name_something(world: World) -> None:
    """An empty mask, or no mask and no value, is refused rather than guessed at."""
    key_id = world.create().api_key.id
    for request in (
        pb.UpdateRequest(api_key={"id": key_id}),
        pb.UpdateRequest(api_key={"id": key_id, "environment_id": "live"}),
        pb.UpdateRequest(api_key={"id": key_id, "name": "after"}, update_mask={}),
    ):
        assert world.refused("Update", request).fields == ["update_mask"]
    assert world.refused("Update", pb.UpdateRequest(update_mask={"paths": ["name"]})).fields == ["api_key.id"]


def test_naming_a_field_twice_is_naming_it_once(world: World) -> None:
    """A path in the mask may be repeated."""
    key_id = world.create().api_key.id
    assert world.update(key_id, "name", "name", name="after").api_key.name == "after"


INVALID: list[tuple[str, Any, str]] = [
    ("name", "ab", "api_key.name"),
    ("owner_id", "o" * 256, "api_key.owner_id"),
    ("scopes", ["fine", "fine:too", "", "not fine"], "api_key.scopes[2]"),
    ("metadata", {"note": "\x00"}, "api_key.metadata['note']"),
    ("allowed_cidrs", ["192.0.2.7/24"], "api_key.allowed_cidrs[0]"),
    ("expire_time", at(NOW), "api_key.expire_time"),
    ("expire_time", {"seconds": 253_402_300_800}, "api_key.expire_time"),
    ("rotation", {"interval": lasting(1)}, "api_key.rotation.interval"),
    ("rotation", {"interval": {"seconds": 1, "nanos": -1}}, "api_key.rotation.interval"),
    ("rotation", {"next_time": at(NOW)}, "api_key.rotation.interval"),
    ("rotation", {"interval": lasting(DAY), "webhook_url": "http://example.com"}, "api_key.rotation.webhook_url"),
]


@pytest.mark.parametrize(("field", "value", "path"), INVALID)
def test_a_new_value_keeps_the_rules_of_create(world: World, field: str, value: Any, path: str) -> None:
    """An invalid value is INVALID_ARGUMENT with a path below api_key; an expiry must lie in the future."""
    before = world.create(**EVERYTHING).api_key
    request = pb.UpdateRequest(api_key={"id": before.id, field: value}, update_mask={"paths": [field]})
    refused = world.refused("Update", request)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields[0] == path
    assert world.get(before.id) == before
    assert world.refused("Update", pb.UpdateRequest(api_key={"id": before.id, field: value})).fields[0] == path


@pytest.mark.parametrize(("field", "value", "path"), INVALID)
def test_a_field_outside_the_mask_need_not_keep_any_rule(world: World, field: str, value: Any, path: str) -> None:
    """A field outside the mask is not validated."""
    key_id = world.create().api_key.id
    mask = "owner_id" if field == "name" else "name"
    request = {"id": key_id, "name": "after", "owner_id": "bob", field: value}
    after = world.call("Update", pb.UpdateRequest(api_key=request, update_mask={"paths": [mask]})).api_key
    assert (after.name, after.owner_id) == (("default", "bob") if mask == "owner_id" else ("after", ""))


def test_a_stale_etag_is_aborted(world: World) -> None:
    """An Update with a stale etag is ABORTED, and the earlier change stays."""
    read = world.create().api_key
    first = world.update(read.id, "name", name="first", etag=read.etag).api_key
    request = pb.UpdateRequest(api_key={"id": read.id, "name": "second", "etag": read.etag})
    refused = world.refused("Update", request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert refused.info.metadata["key_id"] == read.id
    assert world.get(read.id) == first
    assert world.update(read.id, "name", name="second", etag=first.etag).api_key.name == "second"


def test_every_change_makes_a_new_etag(world: World) -> None:
    """Every change of a key, by Update, SetActive, Rotate or Revoke, changes its etag."""
    key_id = world.create().api_key.id
    etags = [world.get(key_id).etag]
    for change in (
        lambda: world.update(key_id, "name", name="after"),
        lambda: world.set_active(key_id, False),
        lambda: world.set_active(key_id, True),
        lambda: world.rotate(key_id),
        lambda: world.revoke(key_id),
    ):
        change()
        etags.append(world.get(key_id).etag)
    assert len(set(etags)) == len(etags)


def test_changing_nothing_leaves_no_trace(world: World) -> None:
    """An Update to the current values keeps the etag and has no event, but a stale etag is still refused."""
    before = world.create(**EVERYTHING).api_key
    events = len(world.events())
    world.clock.advance(HOUR)
    same = {**EVERYTHING, "etag": before.etag}
    assert world.update(before.id, *EVERYTHING, **same).api_key == before
    assert len(world.events()) == events
    stale = pb.UpdateRequest(api_key={"id": before.id, "name": "before", "etag": '"0"'})
    assert world.refused("Update", stale).reason == "ETAG_MISMATCH"


def test_the_schedule_counts_from_when_the_interval_was_given(world: World) -> None:
    """A new interval starts a new period; the same interval again keeps next_time."""
    start = world.clock.now
    key_id = world.create(rotation={"interval": lasting(DAY)}).api_key.id
    world.clock.advance(HOUR)
    again = world.update(key_id, "rotation", "name", name="same interval", rotation={"interval": lasting(DAY)}).api_key
    assert again.rotation.next_time == at(start + DAY)
    given = world.update(key_id, "rotation", rotation={"interval": lasting(2 * DAY)}).api_key
    assert given.rotation.next_time == at(world.clock.now + 2 * DAY)


def test_an_expired_key_is_revived_by_a_later_expiry(world: World) -> None:
    """An expired key works again after its expire_time is moved to the future or cleared."""
    created = world.create(ttl=lasting(HOUR))
    world.clock.advance(HOUR)
    assert world.verdict(created.key) == "EXPIRED"
    world.update(created.api_key.id, "expire_time", expire_time=at(world.clock.now + 1))
    assert world.verdict(created.key) == "VALID"
    world.clock.advance(1)
    assert world.verdict(created.key) == "EXPIRED"
    world.update(created.api_key.id, "expire_time")
    assert world.verdict(created.key) == "VALID"


@pytest.mark.parametrize(
    ("fields", "demand", "before", "after"),
    [
        ({"scopes": []}, {"required_scopes": ["a:read"]}, "VALID", "INSUFFICIENT_SCOPE"),
        ({"scopes": ["c:*"]}, {"required_scopes": ["c:read"]}, "INSUFFICIENT_SCOPE", "VALID"),
        ({"allowed_cidrs": ["192.0.2.8"]}, {}, "VALID", "IP_NOT_ALLOWED"),
        ({"allowed_cidrs": []}, {"client_ip": "8.8.8.8"}, "IP_NOT_ALLOWED", "VALID"),
        ({"expire_time": at(NOW + 2)}, {}, "VALID", "EXPIRED"),
    ],
    ids=["scope taken", "scope given", "network taken", "network given", "expiry"],
)
def test_a_change_is_in_force_when_it_returns(
    world: World, fields: dict[str, Any], demand: dict[str, Any], before: str, after: str
) -> None:
    """The next Verify decides by the new values, even if the old ones were cached."""
    created = world.create(**EVERYTHING)
    demand = {"client_ip": "192.0.2.7", **demand}
    assert world.verdict(created.key, **demand) == before
    world.clock.advance(1)
    token = world.update(created.api_key.id, *fields, **fields).consistency_token
    world.clock.advance(1)
    assert world.verdict(created.key, **demand) == after
    assert world.verify(created.key, **demand).consistency_token == token


def test_a_revoked_key_cannot_be_changed(world: World) -> None:
    """Updating a revoked key is FAILED_PRECONDITION, whatever its etag."""
    created = world.create().api_key
    revoked = world.revoke(created.id).api_key
    refused = world.refused(
        "Update", pb.UpdateRequest(api_key={"id": created.id, "name": "after", "etag": created.etag})
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_REVOKED")
    assert refused.info.metadata["key_id"] == created.id
    assert world.get(created.id) == revoked


def test_an_unknown_key_cannot_be_changed(world: World) -> None:
    """Updating an unknown ID is NOT_FOUND."""
    refused = world.refused("Update", pb.UpdateRequest(api_key={"id": "0" * 16, "name": "after"}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
