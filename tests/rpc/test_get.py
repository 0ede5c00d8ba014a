"""Get."""

import grpc
import pytest

from tests.harness import World, lasting
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import HOUR, SECOND


def test_a_key_is_read_in_every_state(world: World) -> None:
    """Get returns a key in every state, and the state is current."""
    created = world.create(ttl=lasting(HOUR))
    key_id = created.api_key.id
    states = [world.get(key_id).state]
    world.clock.advance(HOUR)
    states.append(world.get(key_id).state)
    world.set_active(key_id, False)
    states.append(world.get(key_id).state)
    world.update(key_id, "expire_time")
    world.rotate(key_id)
    states.append(world.get(key_id).state)
    world.revoke(key_id)
    states.append(world.get(key_id).state)
    assert [api_key_pb2.State.Name(state) for state in states] == [
        "STATE_ACTIVE",
        "STATE_EXPIRED",
        "STATE_INACTIVE",
        "STATE_SUPERSEDED",
        "STATE_REVOKED",
    ]


def test_the_instant_of_expiry_is_expired(world: World) -> None:
    """A key is ACTIVE to the last microsecond before expire_time, and EXPIRED from then on."""
    key_id = world.create(ttl=lasting(SECOND)).api_key.id
    world.clock.advance(SECOND - 1)
    assert world.get(key_id).state == api_key_pb2.STATE_ACTIVE
    world.clock.advance(1)
    assert world.get(key_id).state == api_key_pb2.STATE_EXPIRED


def test_reading_changes_nothing(world: World) -> None:
    """Two Gets return the same and have no event."""
    key_id = world.create().api_key.id
    events = len(world.events())
    assert world.get(key_id) == world.get(key_id)
    assert len(world.events()) == events


def test_no_answer_holds_a_secret(world: World) -> None:
    """Neither Get nor List returns the secret, its hash or its digest."""
    created = world.create()
    answers = [world.call("Get", pb.GetRequest(key_id=created.api_key.id)), world.page()]
    for answer in answers:
        data = answer.SerializeToString()
        assert created.key[-49:-6].encode() not in data
        assert b"$2b$" not in data


def test_an_unknown_id_is_not_found(world: World) -> None:
    """An unknown ID is NOT_FOUND and named."""
    refused = world.refused("Get", pb.GetRequest(key_id="0" * 16))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert refused.info.metadata["key_id"] == "0" * 16


@pytest.mark.parametrize("method", ["Get", "Update", "SetActive", "Revoke", "Rotate"])
def test_what_is_no_id_is_refused_and_not_repeated(world: World, method: str) -> None:
    """An ID that is empty, malformed or a whole key is INVALID_ARGUMENT, and is not quoted."""
    key = world.create().key
    for text in ("", "0" * 15, "0" * 17, "0" * 15 + "-", "0" * 16 + "\n", "0" * 15 + "é", key):
        if method == "Update":
            request = pb.UpdateRequest(api_key={"id": text, "name": "new"})
            path = "api_key.id"
        else:
            request = getattr(pb, f"{method}Request")(key_id=text)
            path = "key_id"
        refused = world.refused(method, request)
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
        assert key[-49:] not in refused.message
        assert key[-49:].encode() not in refused.status.SerializeToString()
