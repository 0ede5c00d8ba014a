"""SetActive."""

import grpc
import pytest

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import HOUR


def by_name(world: World, name: str, active: bool, key: str | None = None, **fields: str) -> pb.SetActiveResponse:
    """Activate or deactivate a key by name, in project ``acme`` by default."""
    target = {"project_id": "acme", "name": name, **fields}
    return world.call("SetActive", pb.SetActiveRequest(by_name=target, active=active), key)


def test_a_key_is_switched_off_and_on_again(world: World) -> None:
    """A deactivated key is denied as soon as the call returns, and accepted again after its activation."""
    created = world.create()
    key_id = created.api_key.id
    assert world.verdict(created.key) == "VALID"
    world.clock.advance(1)
    off = world.set_active(key_id, False)
    assert off.api_key.state == api_key_pb2.STATE_INACTIVE
    assert off.api_key.update_time == at(world.clock.now)
    assert world.verify(created.key).consistency_token == off.consistency_token
    assert world.verdict(created.key) == "INACTIVE"
    on = world.set_active(key_id, True)
    assert on.api_key.state == api_key_pb2.STATE_ACTIVE
    assert world.verdict(created.key) == "VALID"
    assert world.get(key_id) == on.api_key


@pytest.mark.parametrize("active", [False, True])
def test_switching_twice_changes_nothing(world: World, active: bool) -> None:
    """A repeated SetActive returns the same key and the token of its last change, and has no event."""
    key_id = world.create().api_key.id
    world.set_active(key_id, False)
    first = world.set_active(key_id, active)
    world.create()
    events = len(world.events())
    world.clock.advance(HOUR)
    assert world.set_active(key_id, active) == first
    assert len(world.events()) == events


def test_only_the_switch_moves(world: World) -> None:
    """Deactivation and activation change nothing else of the key."""
    before = world.create(scopes=["a:b"], metadata={"k": "v"}, owner_id="alice", ttl=lasting(HOUR)).api_key
    world.set_active(before.id, False)
    after = world.set_active(before.id, True).api_key
    assert after.etag != before.etag
    after.etag = before.etag
    assert after == before


def test_an_expired_key_can_be_switched(world: World) -> None:
    """An expired key can be deactivated and activated, and stays expired."""
    created = world.create(ttl=lasting(HOUR))
    world.clock.advance(HOUR)
    assert world.set_active(created.api_key.id, False).api_key.state == api_key_pb2.STATE_INACTIVE
    assert world.set_active(created.api_key.id, True).api_key.state == api_key_pb2.STATE_EXPIRED


def test_a_rotated_key_can_be_cut_off_during_its_grace(world: World) -> None:
    """A deactivated superseded key is denied even in its grace period, and its successor is not affected."""
    created = world.create()
    rotated = world.rotate(created.api_key.id)
    assert world.set_active(created.api_key.id, False).api_key.state == api_key_pb2.STATE_SUPERSEDED
    assert world.verdict(created.key) == "INACTIVE"
    assert world.verdict(rotated.key) == "VALID"


@pytest.mark.parametrize("active", [False, True])
def test_a_revoked_key_cannot_be_switched(world: World, active: bool) -> None:
    """SetActive of a revoked key is FAILED_PRECONDITION, on or off, by ID or by name."""
    key_id = world.create(name="gone").api_key.id
    world.revoke(key_id)
    target = {"project_id": "acme", "name": "gone"}
    for request in (
        pb.SetActiveRequest(key_id=key_id, active=active),
        pb.SetActiveRequest(by_name=target, active=active),
    ):
        refused = world.refused("SetActive", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_REVOKED")
        assert refused.info.metadata["key_id"] == key_id


def test_a_key_is_found_by_its_name(world: World) -> None:
    """by_name finds the one key with exactly this name, project and environment."""
    live = world.create(name="worker", environment_id="live").api_key.id
    none = world.create(name="worker").api_key.id
    beta = world.create(name="worker", project_id="beta").api_key.id
    world.create(name="Worker")
    world.create(name="worker 2")
    assert by_name(world, "worker", False).api_key.id == none
    assert by_name(world, "worker", False, environment_id="live").api_key.id == live
    assert by_name(world, "worker", False, project_id="beta").api_key.id == beta
    assert [world.get(key_id).state for key_id in (live, none, beta)] == [api_key_pb2.STATE_INACTIVE] * 3
    assert by_name(world, "worker", True).api_key.state == api_key_pb2.STATE_ACTIVE


def test_an_empty_project_is_the_callers_own(world: World) -> None:
    """by_name without a project searches the caller's own, for an operator the reserved one."""
    acme = world.create(name="worker").api_key.id
    reserved = world.create(name="worker", project_id="tumbler").api_key.id
    caller = world.caller("tumbler:keys:update")
    assert by_name(world, "worker", False, caller, project_id="").api_key.id == acme
    assert by_name(world, "worker", False, project_id="").api_key.id == reserved


def test_an_ambiguous_name_is_answered_with_the_ids(world: World) -> None:
    """A name of several keys is FAILED_PRECONDITION with their IDs, and nothing changes."""
    ids = sorted(world.create(name="worker").api_key.id for _ in range(3))
    events = len(world.events())
    request = pb.SetActiveRequest(by_name={"project_id": "acme", "name": "worker"})
    refused = world.refused("SetActive", request)
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NAME_AMBIGUOUS")
    assert refused.info.metadata["key_ids"] == ",".join(ids)
    assert len(world.events()) == events


def test_keys_that_can_never_work_again_are_passed_over(world: World) -> None:
    """Revoked keys and superseded ones past their grace period do not make a name ambiguous."""
    revoked, rotated = world.create(name="worker").api_key.id, world.create(name="worker").api_key.id
    world.revoke(revoked)
    successor = world.rotate(rotated, grace_period=lasting(HOUR)).api_key.id
    request = pb.SetActiveRequest(by_name={"project_id": "acme", "name": "worker"})
    refused = world.refused("SetActive", request)
    assert refused.info.metadata["key_ids"] == ",".join(sorted([rotated, successor]))
    world.clock.advance(HOUR)
    assert by_name(world, "worker", False).api_key.id == successor


def test_expired_and_inactive_keys_are_not_passed_over(world: World) -> None:
    """Expired and inactive keys count for a name, because they can work again."""
    expired, inactive = world.create(name="worker", ttl=lasting(1)).api_key.id, world.create(name="worker").api_key.id
    world.set_active(inactive, False)
    world.clock.advance(1)
    request = pb.SetActiveRequest(by_name={"project_id": "acme", "name": "worker"})
    assert world.refused("SetActive", request).info.metadata["key_ids"] == ",".join(sorted([expired, inactive]))


def test_the_only_key_of_a_name_is_found_though_it_is_dead(world: World) -> None:
    """If no other key matches, a superseded key past its grace period is found by its name."""
    key_id = world.create(name="worker").api_key.id
    successor = world.rotate(key_id, grace_period=lasting(0)).api_key.id
    world.update(successor, "name", name="renamed")
    assert by_name(world, "worker", False).api_key.id == key_id


def test_an_unknown_name_or_id_is_not_found(world: World) -> None:
    """An unknown name or ID is NOT_FOUND."""
    for request in (
        pb.SetActiveRequest(by_name={"project_id": "acme", "name": "nobody"}),
        pb.SetActiveRequest(key_id="0" * 16),
    ):
        refused = world.refused("SetActive", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (pb.SetActiveRequest(active=True), "key_id"),
        (pb.SetActiveRequest(by_name={}), "by_name.name"),
        (pb.SetActiveRequest(by_name={"name": "n" * 256}), "by_name.name"),
        (pb.SetActiveRequest(by_name={"name": "\x00"}), "by_name.name"),
        (pb.SetActiveRequest(by_name={"name": "n", "project_id": "-"}), "by_name.project_id"),
        (pb.SetActiveRequest(by_name={"name": "n", "environment_id": "a b"}), "by_name.environment_id"),
    ],
    ids=["no target", "no name", "long name", "name with NUL", "bad project", "bad environment"],
)
def test_a_target_is_required(world: World, request_: pb.SetActiveRequest, path: str) -> None:
    """A missing or invalid target is INVALID_ARGUMENT with its path."""
    refused = world.refused("SetActive", request_)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
