"""Revoke."""

import grpc
import pytest

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR

REASONS = api_key_pb2.RevokeReason.keys()


@pytest.mark.parametrize("reason", REASONS)
def test_a_revocation_is_kept_with_its_reason(world: World, reason: str) -> None:
    """Revoke adds time, reason and comment to the key's record, and changes nothing else."""
    before = world.create(scopes=["a:b"], metadata={"k": "v"}).api_key
    world.clock.advance(HOUR)
    answer = world.revoke(before.id, reason=reason, comment="found in a public repository")
    expected = api_key_pb2.ApiKey()
    expected.CopyFrom(before)
    expected.MergeFrom(
        api_key_pb2.ApiKey(
            state="STATE_REVOKED",
            revoke_time=at(world.clock.now),
            revoke_reason=reason,
            revoke_comment="found in a public repository",
            update_time=at(world.clock.now),
            etag=answer.api_key.etag,
        )
    )
    assert answer.api_key == expected
    assert world.get(before.id) == expected


def test_a_revoked_key_is_denied_at_once(world: World) -> None:
    """A Verify that starts after Revoke has returned is REVOKED, even if the key was cached as valid."""
    created = world.create()
    assert world.verdict(created.key) == "VALID"
    revoked = world.revoke(created.api_key.id)
    answer = world.verify(created.key)
    assert (answer.valid, pb.VerifyCode.Name(answer.code)) == (False, "VERIFY_CODE_REVOKED")
    assert answer.consistency_token == revoked.consistency_token


def test_a_revocation_is_for_ever(world: World) -> None:
    """No RPC and no passage of time restores a revoked key."""
    created = world.create(ttl=lasting(DAY))
    key_id = created.api_key.id
    revoked = world.revoke(key_id).api_key
    for method, request in (
        ("SetActive", pb.SetActiveRequest(key_id=key_id, active=True)),
        ("Update", pb.UpdateRequest(api_key={"id": key_id}, update_mask={"paths": ["expire_time"]})),
        ("Rotate", pb.RotateRequest(key_id=key_id)),
    ):
        refused = world.refused(method, request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_REVOKED")
    world.clock.advance(365 * DAY)
    assert world.verdict(created.key) == "REVOKED"
    assert world.get(key_id) == revoked


def test_the_first_revocation_stays(world: World) -> None:
    """A repeated Revoke returns the first time, reason, comment and token, and has no event."""
    key_id = world.create().api_key.id
    first = world.revoke(key_id, reason="REVOKE_REASON_OWNER_LEFT", comment="first")
    world.create()
    events = len(world.events())
    world.clock.advance(HOUR)
    assert world.revoke(key_id, reason="REVOKE_REASON_COMPROMISED", comment="second") == first
    assert world.revoke(key_id) == first
    assert len(world.events()) == events


@pytest.mark.parametrize("state", ["inactive", "expired", "superseded"])
def test_a_key_can_be_revoked_in_any_state(world: World, state: str) -> None:
    """Inactive, expired and superseded keys can be revoked, and REVOKED takes precedence."""
    created = world.create(ttl=lasting(HOUR))
    key_id = created.api_key.id
    if state == "inactive":
        world.set_active(key_id, False)
    elif state == "expired":
        world.clock.advance(HOUR)
    else:
        world.rotate(key_id)
    assert world.revoke(key_id).api_key.state == api_key_pb2.STATE_REVOKED
    assert world.verdict(created.key) == "REVOKED"


def test_revoking_a_rotated_key_spares_its_successor(world: World) -> None:
    """Revoking a rotated key does not affect its successor, and vice versa."""
    created = world.create()
    rotated = world.rotate(created.api_key.id)
    world.revoke(created.api_key.id)
    assert (world.verdict(created.key), world.verdict(rotated.key)) == ("REVOKED", "VALID")
    again = world.rotate(rotated.api_key.id)
    world.revoke(again.api_key.id)
    assert (world.verdict(rotated.key), world.verdict(again.key)) == ("VALID", "REVOKED")


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (pb.RevokeRequest(key_id="0" * 16, reason=6), "reason"),
        (pb.RevokeRequest(key_id="0" * 16, reason=-1), "reason"),
        (pb.RevokeRequest(key_id="0" * 16, comment="c" * 1_025), "comment"),
        (pb.RevokeRequest(key_id="0" * 16, comment="c\x00"), "comment"),
    ],
    ids=["unknown reason", "negative reason", "long comment", "comment with NUL"],
)
def test_only_named_reasons_and_short_comments(world: World, request_: pb.RevokeRequest, path: str) -> None:
    """A reason that this version does not know, or a comment of over 1,024 characters, is INVALID_ARGUMENT."""
    request_.key_id = world.create().api_key.id
    refused = world.refused("Revoke", request_)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
    assert world.get(request_.key_id).state == api_key_pb2.STATE_ACTIVE


def test_the_longest_comment(world: World) -> None:
    """A comment of 1,024 characters is kept whole."""
    key_id = world.create().api_key.id
    assert world.revoke(key_id, comment="é" * 1_024).api_key.revoke_comment == "é" * 1_024


def test_an_unknown_key_cannot_be_revoked(world: World) -> None:
    """Revoking an unknown ID is NOT_FOUND."""
    refused = world.refused("Revoke", pb.RevokeRequest(key_id="0" * 16))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
