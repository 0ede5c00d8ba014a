"""Permissions: the caller's key, its scopes and its project."""

from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from tests.harness import Refused, World, at, forged, lasting
from tumbler.keyformat import parse
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import HOUR
from tumbler_server.errors import SetupError
from tumbler_server.rpc import auth
from tumbler_server.secrets.secret import generate
from tumbler_server.server import SERVICE

POLICY = {
    "Create": "tumbler:keys:create",
    "Get": "tumbler:keys:read",
    "List": "tumbler:keys:read",
    "Update": "tumbler:keys:update",
    "SetActive": "tumbler:keys:update",
    "Revoke": "tumbler:keys:revoke",
    "Rotate": "tumbler:keys:rotate",
    "Verify": "tumbler:keys:verify",
    "BatchVerify": "tumbler:keys:verify",
    "Watch": "tumbler:keys:verify",
    "ListEvents": "tumbler:events:read",
    "ListDeliveries": "tumbler:events:read",
    "Redeliver": "tumbler:keys:update",
    "RotateWebhookSecret": "tumbler:keys:update",
}

SCOPES = sorted(set(POLICY.values()))


def request_for(method: str, key_id: str) -> Message:
    """Return a valid request of an RPC about a key of project ``acme``."""
    requests: dict[str, Message] = {
        "Create": pb.CreateRequest(project_id="acme"),
        "Get": pb.GetRequest(key_id=key_id),
        "List": pb.ListRequest(),
        "Update": pb.UpdateRequest(api_key={"id": key_id, "name": "after"}),
        "SetActive": pb.SetActiveRequest(key_id=key_id, active=False),
        "Revoke": pb.RevokeRequest(key_id=key_id),
        "Rotate": pb.RotateRequest(key_id=key_id),
        "Verify": pb.VerifyRequest(key="whatever"),
        "BatchVerify": pb.BatchVerifyRequest(requests=[pb.VerifyRequest()]),
        "Watch": pb.WatchRequest(),
        "ListEvents": pb.ListEventsRequest(),
        "ClaimRotation": pb.ClaimRotationRequest(claim_token="token"),
        "ListDeliveries": pb.ListDeliveriesRequest(),
        "Redeliver": pb.RedeliverRequest(delivery_id="msg_0"),
        "RotateWebhookSecret": pb.RotateWebhookSecretRequest(webhook_url="https://hooks.example.com/"),
    }
    return requests[method]


def outcome(world: World, method: str, key: str, key_id: str = "", metadata: Any = None) -> str:
    """Call an RPC and return the name of its status code."""
    try:
        world.call(method, request_for(method, key_id), key, metadata)
    except Refused as refused:
        return refused.code.name
    return "OK"


ALLOWED = dict.fromkeys(POLICY, "OK") | {"Redeliver": "NOT_FOUND", "RotateWebhookSecret": "NOT_FOUND"}
"""The status code of an RPC for an allowed caller. There are no webhooks here."""


@pytest.mark.parametrize("method", POLICY)
def test_one_scope_is_enough_and_no_other(world: World, method: str) -> None:
    """Each RPC needs exactly one scope; without it, even with all others and `*`, the error names it."""
    scope = POLICY[method]
    key_id = world.create().api_key.id
    others = [other for other in SCOPES if other != scope]
    poor = world.caller("*", *others, scope.rpartition(":")[0], f"{scope}:own", f"{scope}:*")
    refused = world.refused(method, request_for(method, key_id), poor)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert refused.info.metadata == {"scope": scope}
    allowed = ALLOWED[method]
    assert outcome(world, method, world.caller(scope), key_id) == allowed


@pytest.mark.parametrize("method", POLICY)
def test_wildcards_below_the_reserved_name_grant(world: World, method: str) -> None:
    """`tumbler:*` grants every RPC; `tumbler:keys:*` grants every RPC on keys, but not the audit trail."""
    key_id = world.create().api_key.id
    allowed = ALLOWED[method]
    narrow = outcome(world, method, world.caller("tumbler:keys:*"), key_id)
    assert narrow == ("PERMISSION_DENIED" if POLICY[method] == "tumbler:events:read" else allowed)
    key_id = world.create().api_key.id
    assert outcome(world, method, world.caller("tumbler:*"), key_id) == allowed


def test_claim_rotation_asks_for_no_key(world: World) -> None:
    """ClaimRotation needs no key, because the claim token is its credential."""
    refused = world.refused("ClaimRotation", pb.ClaimRotationRequest(claim_token="token"), key="")
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CLAIM_TOKEN_INVALID")


def test_every_key_that_is_not_accepted_gets_one_answer(world: World) -> None:
    """Missing, malformed, unknown, forged, revoked, expired and inactive keys get the same response, byte for byte."""
    scope = "tumbler:keys:read"
    made = {
        name: world.create(scopes=[scope], name=name, ttl=lasting(2 * HOUR))
        for name in ("revoked", "inactive", "superseded", "environment")
    }
    expired = world.create(scopes=[scope], ttl=lasting(HOUR)).key
    bound = world.create(scopes=[scope], allowed_cidrs=["203.0.113.0/24"]).key
    world.revoke(made["revoked"].api_key.id)
    world.set_active(made["inactive"].api_key.id, False)
    world.rotate(made["superseded"].api_key.id, grace_period=lasting(HOUR))
    assert world.page(made["superseded"].key).api_keys  # it may call within its grace period
    world.clock.advance(HOUR)
    good = made["environment"].key
    assert world.page(good).api_keys
    sent: dict[str, Any] = {
        "none": (),
        "empty": (("authorization", ""),),
        "no key": (("authorization", "Bearer"),),
        "blank": (("authorization", "Bearer   "),),
        "malformed": (("authorization", "Bearer garbage"),),
        "two": (("authorization", f"Bearer {good} {good}"),),
        "basic": (("authorization", f"Basic {good}"),),
        "bare": (("authorization", good),),
        "bytes": (("authorization-bin", good.encode()),),
        "cookie": (("cookie", good),),
        "unknown": (("authorization", f"Bearer {generate('tmb').text}"),),
        "forged": (("authorization", f"Bearer {forged(good)}"),),
        "malformed x-api-key": (("x-api-key", "garbage"),),
        "bearer in x-api-key": (("x-api-key", f"Bearer {good}"),),
        "expired": (("authorization", f"Bearer {expired}"),),
        "bound to a network": (("authorization", f"Bearer {bound}"),),
        **{name: (("authorization", f"Bearer {made[name].key}"),) for name in ("revoked", "inactive", "superseded")},
    }
    answers = {}
    for name, metadata in sent.items():
        refused = world.refused("List", pb.ListRequest(), metadata=metadata)
        answers[refused.code, refused.message, refused.status.SerializeToString()] = name
        assert refused.code is grpc.StatusCode.UNAUTHENTICATED, name
        assert refused.reason == "UNAUTHENTICATED"
    assert len(answers) == 1


def test_unauthenticated_comes_before_all_else(world: World) -> None:
    """An unauthenticated caller learns nothing about its request."""
    for method in POLICY:
        broken = type(request_for(method, ""))()
        assert world.refused(method, broken, key="").code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER {}", "bEaReR {}", "Bearer   {}  "])
def test_bearer_may_be_written_in_any_case(world: World, form: str) -> None:
    """The case of the scheme does not matter (RFC 9110), and neither do spaces around the key."""
    metadata = (("authorization", form.format(world.operator)),)
    assert outcome(world, "List", "", metadata=metadata) == "OK"


def test_the_key_may_come_as_x_api_key(world: World) -> None:
    """`x-api-key` holds only the key."""
    assert outcome(world, "List", "", metadata=(("x-api-key", world.operator),)) == "OK"


def test_a_call_has_one_credential(world: World) -> None:
    """More than one credential, of one kind or of two, is UNAUTHENTICATED, even if each is good."""
    good, other = world.operator, world.caller("tumbler:*")
    bearer, api_key = ("authorization", f"Bearer {good}"), ("x-api-key", good)
    for metadata in (
        (bearer, api_key),
        (api_key, bearer),
        (bearer, bearer),
        (api_key, ("x-api-key", other)),
        (("authorization", ""), api_key),
        (("authorization", f"Basic {good}"), bearer),
    ):
        assert outcome(world, "List", "", metadata=metadata) == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("peer", "networks", "expected"),
    [
        ("ipv4:192.0.2.7:50000", ["192.0.2.0/24"], "OK"),
        ("ipv4:198.51.100.1:50000", ["192.0.2.0/24"], "UNAUTHENTICATED"),
        ("ipv6:%5B2001:db8::7%5D:50000", ["2001:db8::/32"], "OK"),
        ("ipv6:[2001:db8::7]:50000", ["2001:db8::/32"], "OK"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50000", ["192.0.2.0/24"], "OK"),
        ("ipv6:%5B2001:db9::7%5D:50000", ["2001:db8::/32"], "UNAUTHENTICATED"),
        ("unix:/tmp/tumbler.sock", ["0.0.0.0/0", "::/0"], "UNAUTHENTICATED"),
        ("", ["0.0.0.0/0"], "UNAUTHENTICATED"),
    ],
)
def test_a_calling_key_is_bound_to_its_networks(world: World, peer: str, networks: list[str], expected: str) -> None:
    """A calling key with allowed_cidrs works only from those networks; each call's connection address is checked."""
    key = world.caller("tumbler:keys:read", allowed_cidrs=networks)
    world.peer = peer
    assert outcome(world, "List", key) == expected
    assert outcome(world, "List", key) == expected
    assert outcome(world, "List", world.operator) == "OK"


@pytest.mark.parametrize("networks", [[], ["127.0.0.0/8"]], ids=["from anywhere", "bound to a network"])
@pytest.mark.parametrize("method", sorted(POLICY))
def test_a_call_is_a_use_of_the_callers_key(world: World, method: str, networks: list[str]) -> None:
    """Every call updates the last_used_time of its calling key, whether or not the key is bound to networks."""
    key_id = world.create().api_key.id
    caller = world.caller(POLICY[method], allowed_cidrs=networks)
    world.clock.advance(HOUR)
    for _ in range(2):  # from the database, then from the cache
        assert outcome(world, method, caller, key_id) != "UNAUTHENTICATED"
    world.core.usage.flush()
    assert world.get(parse(caller).id).last_used_time == at(world.clock.now)


def test_an_update_of_the_caller_counts_at_once(world: World) -> None:
    """A scope granted to or removed from a calling key takes effect at its next call."""
    caller = world.create(scopes=["tumbler:keys:read"])
    assert outcome(world, "List", caller.key) == "OK"
    world.update(caller.api_key.id, "scopes")
    assert outcome(world, "List", caller.key) == "PERMISSION_DENIED"
    world.update(caller.api_key.id, scopes=["tumbler:*"])
    assert outcome(world, "List", caller.key) == "OK"


BY_ID = ("Get", "Update", "SetActive", "Revoke", "Rotate")


@pytest.mark.parametrize("method", BY_ID)
def test_a_key_of_another_project_does_not_exist(world: World, method: str) -> None:
    """A key of another project gets exactly the response of an unknown ID, and nothing changes."""
    caller = world.caller("tumbler:*", project_id="beta")
    created = world.create().api_key
    refused = world.refused(method, request_for(method, created.id), caller)
    unknown = generate("tmb").id
    expected = world.refused(method, request_for(method, unknown), caller)
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert (refused.code, refused.message) == (expected.code, expected.message)
    told = refused.status.SerializeToString(deterministic=True)
    assert told.replace(created.id.encode(), unknown.encode()) == expected.status.SerializeToString(deterministic=True)
    assert world.get(created.id) == created


@pytest.mark.parametrize("state", ["revoked", "superseded", "expired", "with reserved scopes", "with another etag"])
def test_nothing_leaks_of_a_key_of_another_project(world: World, state: str) -> None:
    """A key of another project does not exist for a caller, whatever else is wrong with the request."""
    caller = world.caller("tumbler:keys:*", project_id="beta")
    scopes = ["tumbler:*"] if state == "with reserved scopes" else []
    created = world.create(ttl=lasting(HOUR), scopes=scopes).api_key
    if state == "revoked":
        world.revoke(created.id)
    elif state == "superseded":
        world.rotate(created.id)
    elif state == "expired":
        world.clock.advance(HOUR)
    for method in BY_ID:
        request = request_for(method, created.id)
        if method == "Update":
            request.api_key.etag = '"0"'
            request.api_key.scopes.append("tumbler:*")
        assert world.refused(method, request, caller).reason == "KEY_NOT_FOUND"


NAMING: dict[str, Message] = {
    "Create": pb.CreateRequest(project_id="acme"),
    "List": pb.ListRequest(project_id="acme"),
    "SetActive": pb.SetActiveRequest(by_name={"project_id": "acme", "name": "default"}),
    "Verify": pb.VerifyRequest(key="whatever", project_id="acme"),
}


@pytest.mark.parametrize("method", NAMING)
def test_naming_another_project_is_denied(world: World, method: str) -> None:
    """A request that names another project is PERMISSION_DENIED, whether or not that project has a key."""
    caller = world.caller("tumbler:*", project_id="beta")
    empty = world.refused(method, NAMING[method], caller)
    world.create()
    refused = world.refused(method, NAMING[method], caller)
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "OTHER_PROJECT")
    assert not refused.info.metadata
    assert refused.status == empty.status


def test_a_name_in_another_project_is_not_found(world: World) -> None:
    """by_name without a project searches only the caller's own project."""
    world.create(name="worker")
    caller = world.caller("tumbler:*", project_id="beta")
    refused = world.refused("SetActive", pb.SetActiveRequest(by_name={"name": "worker"}), caller)
    assert refused.reason == "KEY_NOT_FOUND"


@pytest.mark.parametrize("method", POLICY)
def test_an_operator_acts_in_every_project(world: World, method: str) -> None:
    """A key of the reserved project can act in all projects, within its scopes."""
    created = world.create()
    operator = world.caller(POLICY[method], project_id="tumbler")
    assert outcome(world, method, operator, created.api_key.id) == ALLOWED[method]
    if method in NAMING:
        world.call(method, NAMING[method], operator)
    powerless = world.caller("*", project_id="tumbler")
    assert outcome(world, method, powerless, created.api_key.id) == "PERMISSION_DENIED"


def test_a_project_named_alike_is_another_one(world: World) -> None:
    """Only the project `tumbler` is reserved; names are compared exactly."""
    world.create()
    for project in ("Tumbler", "tumbler2", "tumbler/acme"):
        caller = world.caller("tumbler:*", project_id=project)
        assert {api_key.project_id for api_key in world.page(caller).api_keys} == {project}
        assert world.refused("List", pb.ListRequest(project_id="tumbler"), caller).reason == "OTHER_PROJECT"


def test_the_policy_has_a_row_for_every_rpc() -> None:
    """A server does not start if an RPC has no row in the policy, or a row has no RPC."""
    auth.check_policy(SERVICE)
    assert {method: scope for method, scope in auth.POLICY.items() if scope} == POLICY
    without = {method: scope for method, scope in auth.POLICY.items() if method != "Revoke"}
    with pytest.raises(SetupError, match="Revoke"):
        auth.check_policy(SERVICE, without)
    with pytest.raises(SetupError, match="Destroy"):
        auth.check_policy(SERVICE, {**auth.POLICY, "Destroy": "tumbler:keys:revoke"})
