"""Nobody hands out a permission on this service that it does not hold itself."""

import grpc
import pytest
from google.protobuf.message import Message

from tests.harness import Refused, World, lasting
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import HOUR


def told(world: World, method: str, request: Message, key: str) -> str:
    """Call an RPC and return the scope that it refused to hand out; empty: it was done."""
    try:
        world.call(method, request, key)
    except Refused as failure:
        refused = failure
    else:
        return ""
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_ESCALATION")
    return refused.info.metadata["scope"]


GIVEN = [
    (["tumbler:keys:create"], [], ""),
    (["tumbler:keys:create"], ["orders:*", "*"], ""),
    (["tumbler:keys:create"], ["tumbler:keys:create"], ""),
    (["tumbler:keys:create"], ["orders:read", "tumbler:keys:read"], "tumbler:keys:read"),
    (["tumbler:keys:create"], ["tumbler:keys:*"], "tumbler:keys:*"),
    (["tumbler:keys:create"], ["tumbler:*"], "tumbler:*"),
    (["tumbler:keys:create"], ["tumbler:keys:create:own"], "tumbler:keys:create:own"),
    (["tumbler:keys:create"], ["tumbler:unheard:of"], "tumbler:unheard:of"),
    (["tumbler:keys:create", "*"], ["tumbler:keys:read"], "tumbler:keys:read"),
    (["tumbler:keys:*"], ["tumbler:keys:read", "tumbler:keys:*"], ""),
    (["tumbler:keys:*"], ["tumbler:keys:read", "tumbler:events:read"], "tumbler:events:read"),
    (["tumbler:keys:*"], ["tumbler:*"], "tumbler:*"),
    (["tumbler:*"], ["tumbler:*", "tumbler:keys:*", "tumbler:events:read"], ""),
]


@pytest.mark.parametrize(("held", "given", "refused"), GIVEN)
@pytest.mark.parametrize("project", ["acme", "tumbler"])
def test_create_gives_what_the_caller_holds(
    world: World, project: str, held: list[str], given: list[str], refused: str
) -> None:
    """A new key may carry any scope of other services, and of this one's those that the caller holds; operators too."""
    caller = world.caller(*held, project_id=project)
    events = len(world.events())
    assert told(world, "Create", pb.CreateRequest(project_id=project, scopes=given), caller) == refused
    assert len(world.events()) == events + (not refused)


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ([], ["orders:read", "*"], ""),
        ([], ["tumbler:keys:update"], ""),
        ([], ["tumbler:keys:read"], "tumbler:keys:read"),
        ([], ["tumbler:*"], "tumbler:*"),
        (["tumbler:keys:read"], ["tumbler:keys:read", "orders:read"], ""),
        (["tumbler:keys:read"], ["orders:read", "tumbler:keys:read"], ""),
        (["tumbler:keys:read"], [], ""),
        (["tumbler:keys:read"], ["tumbler:keys:read", "tumbler:keys:revoke"], "tumbler:keys:revoke"),
        (["tumbler:keys:read"], ["tumbler:keys:*"], "tumbler:keys:*"),
        (["tumbler:*"], ["tumbler:keys:read"], "tumbler:keys:read"),
    ],
)
def test_update_adds_what_the_caller_holds(world: World, before: list[str], after: list[str], refused: str) -> None:
    """What an Update adds, the caller must hold; keeping or taking away what it lacks is allowed."""
    caller = world.caller("tumbler:keys:update")
    key = world.create(scopes=before).api_key
    request = pb.UpdateRequest(api_key={"id": key.id, "scopes": after}, update_mask={"paths": ["scopes"]})
    assert told(world, "Update", request, caller) == refused
    assert list(world.get(key.id).scopes) == (before if refused else after)


def test_update_of_other_fields_asks_for_no_scope(world: World) -> None:
    """A caller may rename a key that may do more than itself."""
    caller = world.caller("tumbler:keys:update")
    key = world.create(scopes=["tumbler:*"]).api_key
    assert world.update(key.id, "name", name="after", key=caller).api_key.name == "after"


def test_nobody_promotes_itself(world: World) -> None:
    """A key cannot give itself what it lacks."""
    own = world.create(scopes=["tumbler:keys:update"])
    request = pb.UpdateRequest(api_key={"id": own.api_key.id, "scopes": ["tumbler:keys:*"]})
    assert told(world, "Update", request, own.key) == "tumbler:keys:*"


@pytest.mark.parametrize(
    ("held", "carried", "refused"),
    [
        (["tumbler:keys:rotate"], [], ""),
        (["tumbler:keys:rotate"], ["orders:*", "*"], ""),
        (["tumbler:keys:rotate"], ["tumbler:keys:rotate"], ""),
        (["tumbler:keys:rotate"], ["orders:read", "tumbler:keys:read"], "tumbler:keys:read"),
        (["tumbler:keys:rotate"], ["tumbler:*"], "tumbler:*"),
        (["tumbler:keys:*"], ["tumbler:keys:create", "tumbler:keys:*"], ""),
        (["tumbler:keys:*"], ["tumbler:*"], "tumbler:*"),
    ],
)
def test_rotate_shows_no_more_than_the_caller_holds(
    world: World, held: list[str], carried: list[str], refused: str
) -> None:
    """Whoever rotates a key receives the successor's secret, so the caller must hold what it may do to this service."""
    caller = world.caller(*held)
    key = world.create(scopes=carried).api_key
    assert told(world, "Rotate", pb.RotateRequest(key_id=key.id), caller) == refused
    assert bool(world.get(key.id).replaced_by_key_id) == (not refused)


def test_a_key_rotates_itself(world: World) -> None:
    """A key that may rotate can replace itself: it holds what it carries."""
    own = world.create(scopes=["tumbler:keys:rotate", "orders:*"])
    successor = world.rotate(own.api_key.id, own.key)
    again = world.rotate(successor.api_key.id, successor.key)
    assert list(again.api_key.scopes) == ["tumbler:keys:rotate", "orders:*"]


def test_rotate_asks_what_the_key_carries_now(world: World) -> None:
    """What counts are the key's scopes at the moment of the rotation, not those it was made with."""
    caller = world.caller("tumbler:keys:rotate")
    key = world.create(scopes=["tumbler:*"]).api_key
    world.update(key.id, "scopes", scopes=["orders:read"])
    assert world.rotate(key.id, caller).key
    other = world.create().api_key
    world.update(other.id, "scopes", scopes=["tumbler:*"])
    assert told(world, "Rotate", pb.RotateRequest(key_id=other.id), caller) == "tumbler:*"


def test_switching_on_and_reviving_are_not_giving(world: World) -> None:
    """A caller may switch on, or give a later expiry to, a key that may do more than itself: no secret is shown."""
    caller = world.caller("tumbler:keys:update")
    created = world.create(scopes=["tumbler:*"], ttl=lasting(HOUR))
    world.set_active(created.api_key.id, False, caller)
    world.clock.advance(HOUR)
    world.update(created.api_key.id, "expire_time", key=caller)
    world.set_active(created.api_key.id, True, caller)
    assert world.verdict(created.key) == "VALID"
