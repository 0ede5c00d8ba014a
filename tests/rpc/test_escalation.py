"""No caller can grant a permission on this service that it does not hold."""

import itertools
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from tests.harness import FrozenClock, Refused, World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR
from tumbler_server.events.log import EventType
from tumbler_server.keys import webhook_admin, widening
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.lifecycle import Lifecycle

BEGAN = FrozenClock().now


def told(world: World, method: str, request: Message, key: str) -> str:
    """Call an RPC and return the scope that it refused to grant; empty if it succeeded."""
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
    """A new key may have any scope of other services, and those of this one that its caller holds; operators too."""
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
        (["tumbler:keys:update"], ["tumbler:keys:update", "orders:read"], ""),
        (["tumbler:keys:read"], ["orders:read", "tumbler:keys:read"], "tumbler:keys:read"),
        (["tumbler:keys:read"], [], ""),
        (["tumbler:keys:update"], ["tumbler:keys:update", "tumbler:keys:revoke"], "tumbler:keys:revoke"),
        (["tumbler:keys:read"], ["tumbler:keys:*"], "tumbler:keys:*"),
        (["tumbler:keys:read"], ["tumbler:keys:read", "orders:read"], "tumbler:keys:read"),
        (["tumbler:*"], ["tumbler:keys:read"], ""),
        (["tumbler:keys:*", "*"], ["tumbler:keys:revoke", "orders:*", "orders:read"], ""),
    ],
)
def test_update_adds_what_the_caller_holds(world: World, before: list[str], after: list[str], refused: str) -> None:
    """To add a scope, the caller must hold what the key may then do to this service; to remove one, nothing."""
    caller = world.caller("tumbler:keys:update")
    key = world.create(scopes=before).api_key
    request = pb.UpdateRequest(api_key={"id": key.id, "scopes": after}, update_mask={"paths": ["scopes"]})
    assert told(world, "Update", request, caller) == refused
    assert list(world.get(key.id).scopes) == (before if refused else after)


def test_update_of_other_fields_asks_for_no_scope(world: World) -> None:
    """A caller can rename a key with more permissions than its own."""
    caller = world.caller("tumbler:keys:update")
    key = world.create(scopes=["tumbler:*"]).api_key
    assert world.update(key.id, "name", name="after", key=caller).api_key.name == "after"


def test_nobody_promotes_itself(world: World) -> None:
    """A key cannot grant itself a scope that it lacks."""
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
    """Rotate returns the successor's secret, so the caller must hold the key's scopes on this service."""
    caller = world.caller(*held)
    key = world.create(scopes=carried).api_key
    assert told(world, "Rotate", pb.RotateRequest(key_id=key.id), caller) == refused
    assert bool(world.get(key.id).replaced_by_key_id) == (not refused)


def test_a_key_rotates_itself(world: World) -> None:
    """A key with the rotate scope can rotate itself, because it holds its own scopes."""
    own = world.create(scopes=["tumbler:keys:rotate", "orders:*"])
    successor = world.rotate(own.api_key.id, own.key)
    again = world.rotate(successor.api_key.id, successor.key)
    assert list(again.api_key.scopes) == ["tumbler:keys:rotate", "orders:*"]


def test_rotate_asks_what_the_key_carries_now(world: World) -> None:
    """Rotate checks the key's scopes at the time of the rotation."""
    caller = world.caller("tumbler:keys:rotate")
    key = world.create(scopes=["tumbler:*"]).api_key
    world.update(key.id, "scopes", scopes=["orders:read"])
    assert world.rotate(key.id, caller).key
    other = world.create().api_key
    world.update(other.id, "scopes", scopes=["tumbler:*"])
    assert told(world, "Rotate", pb.RotateRequest(key_id=other.id), caller) == "tumbler:*"


WIDER = [
    (
        "an earlier rotation",
        {"rotation": {"interval": lasting(DAY), "webhook_url": "https://93.184.216.34/a"}},
        ["rotation"],
    ),
    ("a later expiry", {"expire_time": at(BEGAN + 50 * DAY)}, ["expire_time"]),
    ("no expiry", {}, ["expire_time"]),
    ("no network", {}, ["allowed_cidrs"]),
    ("a wider network", {"allowed_cidrs": ["10.0.0.0/8"]}, ["allowed_cidrs"]),
    ("one more network", {"allowed_cidrs": ["10.1.0.0/16", "2001:db8::/32"]}, ["allowed_cidrs"]),
    ("one more scope", {"scopes": ["tumbler:*", "orders:read"]}, ["scopes"]),
    (
        "another webhook",
        {"rotation": {"interval": lasting(30 * DAY), "webhook_url": "https://93.184.216.34/b"}},
        ["rotation"],
    ),
    (
        "one wider thing among narrower ones",
        {"allowed_cidrs": ["10.1.2.0/24"], "name": "other"},
        ["allowed_cidrs", "expire_time"],
    ),
]
NARROWER = [
    ("a later rotation", {"rotation": {"interval": lasting(60 * DAY)}}, ["rotation"]),
    ("an earlier expiry", {"expire_time": at(BEGAN + DAY)}, ["expire_time"]),
    ("a smaller network", {"allowed_cidrs": ["10.1.2.0/24", "10.1.3.4/32"]}, ["allowed_cidrs"]),
    ("the same network", {"allowed_cidrs": ["10.1.0.0/16"]}, ["allowed_cidrs"]),
    ("a scope that a wider one covers", {"scopes": ["tumbler:keys:read"]}, ["scopes"]),
    ("no scope", {"scopes": []}, ["scopes"]),
    ("no webhook", {}, ["rotation"]),
    (
        "another name, owner and metadata",
        {"name": "other", "owner_id": "b", "metadata": {"a": "b"}},
        ["name", "owner_id", "metadata"],
    ),
]


def _strong(world: World) -> pb.CreateResponse:
    """Create a key with all permissions and every restriction."""
    return world.create(
        scopes=["tumbler:*"],
        allowed_cidrs=["10.1.0.0/16"],
        ttl=lasting(10 * DAY),
        rotation={"interval": lasting(30 * DAY), "webhook_url": "https://93.184.216.34/a"},
    )


@pytest.mark.parametrize(("fields", "paths"), [case[1:] for case in WIDER], ids=[case[0] for case in WIDER])
def test_whoever_widens_a_key_holds_its_scopes(world: World, fields: dict[str, Any], paths: list[str]) -> None:
    """An Update that lets a key do more requires the `tumbler:…` scopes that it carries."""
    key = _strong(world).api_key
    request = pb.UpdateRequest(api_key={"id": key.id, **fields}, update_mask={"paths": paths})
    caller = world.caller("tumbler:keys:update", "tumbler:keys:rotate")
    assert told(world, "Update", request, caller) == "tumbler:*"
    assert world.get(key.id) == key
    assert told(world, "Update", request, world.caller("tumbler:*")) == ""


@pytest.mark.parametrize(("fields", "paths"), [case[1:] for case in NARROWER], ids=[case[0] for case in NARROWER])
def test_narrowing_asks_for_no_scope_of_the_key(world: World, fields: dict[str, Any], paths: list[str]) -> None:
    """An Update that lets a key do less, or the same, needs only `tumbler:keys:update`."""
    key = _strong(world).api_key
    request = pb.UpdateRequest(api_key={"id": key.id, **fields}, update_mask={"paths": paths})
    assert told(world, "Update", request, world.caller("tumbler:keys:update")) == ""


def test_switching_on_is_widening_and_switching_off_is_not(world: World) -> None:
    """A caller with `update` can deactivate a key with more permissions than its own, but cannot activate it."""
    caller = world.caller("tumbler:keys:update")
    key = _strong(world).api_key
    world.set_active(key.id, False, caller)
    assert told(world, "SetActive", pb.SetActiveRequest(key_id=key.id, active=True), caller) == "tumbler:*"
    by_name = {"project_id": "acme", "name": key.name}
    assert told(world, "SetActive", pb.SetActiveRequest(by_name=by_name, active=True), caller) == "tumbler:*"
    world.set_active(key.id, True, world.caller("tumbler:*"))
    assert world.get(key.id).state == api_key_pb2.STATE_ACTIVE


def test_an_expired_key_is_revived_by_who_holds_its_scopes(world: World) -> None:
    """A later expiry of an expired key also requires the key's scopes."""
    created = world.create(scopes=["tumbler:keys:revoke"], ttl=lasting(HOUR))
    world.clock.advance(HOUR)
    request = pb.UpdateRequest(api_key={"id": created.api_key.id}, update_mask={"paths": ["expire_time"]})
    assert told(world, "Update", request, world.caller("tumbler:keys:update")) == "tumbler:keys:revoke"
    assert told(world, "Update", request, world.caller("tumbler:keys:*")) == ""
    assert world.verdict(created.key) == "VALID"


def _refused_itself(world: World, method: str, request: Message, key: str) -> None:
    with pytest.raises(Refused) as refused:
        world.call(method, request, key)
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SELF_WIDENING")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"expire_time": at(BEGAN + 50 * DAY)}, "expire_time"),
        ({"scopes": ["tumbler:*", "*"]}, "scopes"),
        ({"rotation": {"interval": lasting(DAY)}}, "rotation"),
        ({"rotation": {"interval": lasting(30 * DAY), "webhook_url": "https://93.184.216.34/b"}}, "rotation"),
    ],
)
def test_no_key_widens_itself(world: World, fields: dict[str, Any], path: str) -> None:
    """No key can widen itself, not even one with all permissions."""
    own = world.create(scopes=["tumbler:*"], ttl=lasting(10 * DAY))
    request = pb.UpdateRequest(api_key={"id": own.api_key.id, **fields}, update_mask={"paths": [path]})
    _refused_itself(world, "Update", request, own.key)
    assert world.get(own.api_key.id) == own.api_key


def test_a_key_and_its_successors_are_one(world: World) -> None:
    """Within a grace period, no key of a line of rotations can widen another, by Update, Rotate or SetActive."""
    own = world.create(scopes=["tumbler:keys:*"], ttl=lasting(DAY), allowed_cidrs=["127.0.0.0/8"])
    first = world.rotate(own.api_key.id, own.key, grace_period=lasting(HOUR))
    second = world.rotate(first.api_key.id, own.key, grace_period=lasting(HOUR))
    wider: list[tuple[dict[str, Any], str]] = [
        ({"expire_time": at(BEGAN + 50 * DAY)}, "expire_time"),
        ({}, "allowed_cidrs"),
        ({"scopes": ["tumbler:keys:*", "*"]}, "scopes"),
    ]
    keys = [own, first, second]
    for caller, subject, (fields, path) in itertools.product(keys, keys, wider):
        changed = {"id": subject.api_key.id, **fields}
        _refused_itself(world, "Update", pb.UpdateRequest(api_key=changed, update_mask={"paths": [path]}), caller.key)
    for caller in keys:
        _refused_itself(world, "Rotate", pb.RotateRequest(key_id=second.api_key.id, ttl=lasting(2 * DAY)), caller.key)
    world.set_active(first.api_key.id, False)
    _refused_itself(world, "SetActive", pb.SetActiveRequest(key_id=first.api_key.id, active=True), own.key)
    world.set_active(first.api_key.id, True, world.create(scopes=["tumbler:keys:*"]).key)


def test_a_line_too_long_to_be_read_counts_as_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line of rotations that is too long to read, no key can widen another."""
    monkeypatch.setattr(widening, "_LONGEST", 2)
    monkeypatch.setattr(widening, "_LINE", widening._LINE.replace("1000", "2"))
    own = world.create(scopes=["tumbler:keys:*"], ttl=lasting(DAY))
    newest = own
    for _ in range(4):
        newest = world.rotate(newest.api_key.id, own.key, grace_period=lasting(HOUR))
    request = pb.UpdateRequest(api_key={"id": newest.api_key.id}, update_mask={"paths": ["expire_time"]})
    _refused_itself(world, "Update", request, own.key)


def test_a_repeated_rotate_shows_no_more_than_the_first(world: World) -> None:
    """A replay of another caller's Rotate is refused to a caller that could not rotate the key itself."""
    key = world.create(scopes=["tumbler:*"])
    request = pb.RotateRequest(key_id=key.api_key.id, request_id="123e4567-e89b-42d3-a456-426614174000")
    operator = world.caller("tumbler:*")
    assert world.call("Rotate", request, operator).key
    assert told(world, "Rotate", request, world.caller("tumbler:keys:rotate")) == "tumbler:*"
    assert world.call("Rotate", request, operator).secret_omitted


def test_a_webhooks_secret_is_held_to_every_scope_of_its_keys(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """RotateWebhookSecret checks every scope of the URL's keys; if there are too many, it requires `tumbler:*`."""
    url = "https://93.184.216.34/a"
    schedule = {"interval": lasting(30 * DAY), "webhook_url": url}
    for number in range(11):
        scopes = [f"tumbler:events:a{number:02}{place:02}" for place in range(100)]
        world.create(scopes=scopes, rotation=schedule)
    world.create(scopes=["tumbler:keys:revoke"], rotation=schedule)
    caller = world.caller("tumbler:events:*", "tumbler:keys:update")
    request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=url)
    assert told(world, "RotateWebhookSecret", request, caller) == "tumbler:keys:revoke"
    monkeypatch.setattr(webhook_admin, "_MOST_CARRIED", 1_000)
    assert told(world, "RotateWebhookSecret", request, caller) == "tumbler:*"
    assert told(world, "RotateWebhookSecret", request, world.caller("tumbler:*")) == ""


def test_a_key_narrows_itself(world: World) -> None:
    """A key can remove its own scopes and shorten its own life."""
    own = world.create(scopes=["tumbler:*", "*"], ttl=lasting(10 * DAY))
    world.update(
        own.api_key.id,
        "scopes",
        "expire_time",
        key=own.key,
        scopes=["tumbler:keys:update"],
        expire_time=at(BEGAN + DAY),
    )
    assert list(world.get(own.api_key.id).scopes) == ["tumbler:keys:update"]


def test_a_key_that_rotates_itself_lives_no_longer_than_before(world: World) -> None:
    """A key that rotates itself can give its successor at most its own lifetime, counted from now."""
    own = world.create(scopes=["tumbler:keys:rotate"], ttl=lasting(10 * DAY))
    _refused_itself(world, "Rotate", pb.RotateRequest(key_id=own.api_key.id, ttl=lasting(11 * DAY)), own.key)
    successor = world.call("Rotate", pb.RotateRequest(key_id=own.api_key.id, ttl=lasting(10 * DAY)), own.key)
    assert world.call("Rotate", pb.RotateRequest(key_id=successor.api_key.id), successor.key).key


def test_a_key_that_was_narrowed_does_not_rotate_itself_back(world: World) -> None:
    """A key whose expiry was brought forward gives its successor the lifetime that it was given then, and no longer."""
    own = world.create(scopes=["tumbler:keys:rotate"], ttl=lasting(365 * DAY))
    world.clock.advance(300 * DAY)
    world.update(own.api_key.id, "expire_time", expire_time=at(world.clock.now + HOUR))
    for number in range(120):  # however many other updates hide it
        world.update(own.api_key.id, "name", name=f"another {number}")
    _refused_itself(world, "Rotate", pb.RotateRequest(key_id=own.api_key.id, ttl=lasting(2 * HOUR)), own.key)
    world.clock.advance(HOUR // 2)
    successor = world.call("Rotate", pb.RotateRequest(key_id=own.api_key.id), own.key).api_key
    assert successor.expire_time == at(world.clock.now + HOUR)


def test_a_webhooks_secret_is_for_who_holds_the_scopes_of_its_keys(world: World) -> None:
    """RotateWebhookSecret requires the scopes of the URL's keys, because the secret signs messages about them."""
    url = "https://93.184.216.34/a"
    key = _strong(world).api_key
    request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=url)
    caller = world.caller("tumbler:keys:update")
    assert told(world, "RotateWebhookSecret", request, caller) == "tumbler:*"
    assert told(world, "RotateWebhookSecret", request, world.caller("tumbler:*")) == ""
    world.revoke(key.id)
    assert told(world, "RotateWebhookSecret", request, caller) == "tumbler:*"
    world.create(scopes=["a:b"], rotation={"interval": lasting(30 * DAY), "webhook_url": url})
    assert told(world, "RotateWebhookSecret", request, caller) == ""


def test_an_unused_urls_secret_is_for_who_holds_everything(world: World) -> None:
    """Taking a URL off a stronger key, which is narrowing, does not give its secret to the caller."""
    url = "https://93.184.216.34/a"
    key = _strong(world).api_key
    caller = world.caller("tumbler:keys:update")
    world.update(key.id, "rotation", key=caller, rotation={"interval": lasting(30 * DAY)})
    request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=url)
    assert told(world, "RotateWebhookSecret", request, caller) == "tumbler:*"
    assert told(world, "RotateWebhookSecret", request, world.caller("tumbler:*")) == ""


class TestNarrowedMeanwhile:
    """A caller that is narrowed before its change is written cannot grant the lost scopes."""

    @pytest.fixture
    def meanwhile(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        """Return a function that makes a caller whose scopes change while its call is in flight, before the write."""

        def caller(at: tuple[type, str], *scopes: str, times: int = 1) -> str:
            made = world.create(name="caller", scopes=["tumbler:*"])
            owner, name = at
            wrapped = getattr(owner, name)
            left = itertools.count(times, -1)

            def after(*arguments: Any) -> Any:
                if (number := next(left)) > 0:
                    rest = [f"other:{number}"] if times > 1 else []
                    world.update(made.api_key.id, "scopes", scopes=[*scopes, *rest])
                return wrapped(*arguments)

            monkeypatch.setattr(owner, name, after)
            return str(made.key)

        return caller

    def test_create(self, world: World, meanwhile: Callable[..., str]) -> None:
        """Create refuses scopes that the caller has lost, and accepts others."""
        for scopes, reason in ((["tumbler:*"], "SCOPE_ESCALATION"), (["orders:read"], "")):
            caller = meanwhile((Ledger, "make"), "tumbler:keys:create")
            before = len(world.events())
            request = pb.CreateRequest(project_id="acme", name="loot", scopes=scopes)
            if reason:
                assert world.refused("Create", request, caller).reason == reason
                assert [each.type for each in world.events()[before:]] == [EventType.UPDATED]
            else:
                assert list(world.call("Create", request, caller).api_key.scopes) == scopes

    def test_rotate(self, world: World, meanwhile: Callable[..., str]) -> None:
        """Rotate refuses a key with scopes that the caller has lost."""
        admin = world.create(scopes=["tumbler:*"]).api_key
        caller = meanwhile((Ledger, "make"), "tumbler:keys:rotate")
        assert world.refused("Rotate", pb.RotateRequest(key_id=admin.id), caller).reason == "SCOPE_ESCALATION"

    def test_update(self, world: World, meanwhile: Callable[..., str]) -> None:
        """Update refuses to widen a key with scopes that the caller has lost."""
        admin = world.create(scopes=["tumbler:*"], allowed_cidrs=["192.0.2.0/24"]).api_key
        caller = meanwhile((Lifecycle, "_checked"), "tumbler:keys:update")
        request = pb.UpdateRequest(api_key={"id": admin.id}, update_mask={"paths": ["allowed_cidrs"]})
        assert world.refused("Update", request, caller).reason == "SCOPE_ESCALATION"
        assert list(world.get(admin.id).allowed_cidrs) == ["192.0.2.0/24"]

    def test_again_and_again(self, world: World, meanwhile: Callable[..., str]) -> None:
        """A caller whose scopes change at every attempt is refused after the third, and may retry."""
        caller = meanwhile((Ledger, "make"), "tumbler:keys:create", times=9)
        refused = world.refused("Create", pb.CreateRequest(project_id="acme", name="one"), caller)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.retry_delay > 0
