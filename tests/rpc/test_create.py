"""Create: accepted requests. `test_create_invalid.py` has the refused ones."""

import re
from typing import Any

import pytest

from tests.harness import World, at, forged, lasting
from tumbler import keyformat
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, SECOND

YEAR_9999 = 253_402_300_799 * SECOND + 999_999


def test_every_field_comes_back(world: World) -> None:
    """Create and Get return the fields as given, with duplicates dropped and networks normalized."""
    now = world.clock.now
    created = world.create(
        environment_id="live",
        name="Ship’s log ☃",
        owner_id="user_42",
        scopes=["orders:write", "orders:read:*", "orders:write", "*"],
        metadata={"team": "log", "note": "two\nlines\tand a tab", "empty": ""},
        allowed_cidrs=["192.0.2.7", "2001:DB8::/32", "192.0.2.7/32", "0.0.0.0/0"],
        expire_time=at(now + DAY),
        prefix="acme_live",
        rotation={"interval": lasting(30 * DAY), "next_time": at(7)},
    )
    key_id = created.api_key.id
    operator = keyformat.parse(world.operator).id
    assert created.api_key == api_key_pb2.ApiKey(
        id=key_id,
        project_id="acme",
        environment_id="live",
        name="Ship’s log ☃",
        key_prefix=f"acme_live_{key_id}_",
        owner_id="user_42",
        scopes=["orders:write", "orders:read:*", "*"],
        metadata={"team": "log", "note": "two\nlines\tand a tab", "empty": ""},
        allowed_cidrs=["192.0.2.7/32", "2001:db8::/32", "0.0.0.0/0"],
        state="STATE_ACTIVE",
        create_time=at(now),
        created_by={"key_id": operator, "name": "first operator"},
        update_time=at(now),
        expire_time=at(now + DAY),
        rotation={"interval": lasting(30 * DAY), "next_time": at(now + 30 * DAY)},
        etag=created.api_key.etag,
    )
    assert created.api_key.etag
    assert not created.secret_omitted
    assert not created.webhook_secret
    assert world.get(key_id) == created.api_key


def test_everything_but_the_project_may_be_left_out(world: World) -> None:
    """A key with only a project is named `default`, never expires, and begins with `tmb`."""
    created = world.create(project_id="acme")
    key = created.api_key
    assert key == api_key_pb2.ApiKey(
        id=key.id,
        project_id="acme",
        name="default",
        key_prefix=f"tmb_{key.id}_",
        state="STATE_ACTIVE",
        create_time=key.create_time,
        created_by=key.created_by,
        update_time=key.create_time,
        etag=key.etag,
    )


def test_the_operator_chooses_the_default_prefix(world: World) -> None:
    """Without a prefix, the key begins with the server's default prefix."""
    world.reopen(default_prefix="ship_test")
    assert world.create().key.startswith("ship_test_")
    assert world.create(prefix="acme").key.startswith("acme_")


def test_the_key_has_the_form_that_scanners_look_for(world: World) -> None:
    """A key is `<prefix>_<id>_<secret><check>`, a single word, and its key_prefix is everything before the secret."""
    created = world.create(prefix="acme_live")
    form = r"acme_live_([0-9A-Za-z]{16})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})"
    match = re.fullmatch(form, created.key)
    assert match
    assert match[1] == created.api_key.id
    assert match[3] == keyformat.checksum(created.key[:-6])
    assert created.key.startswith(created.api_key.key_prefix)
    assert created.api_key.key_prefix.endswith(f"_{match[1]}_")
    assert re.fullmatch(keyformat.PATTERN, created.key)
    assert match[2] not in str(created.api_key)


def test_no_two_keys_share_an_id_or_a_secret(world: World) -> None:
    """Two keys with equal fields have different IDs and secrets."""
    first, second = world.create(name="twins"), world.create(name="twins")
    assert first.api_key.id != second.api_key.id
    assert first.key[-49:-6] != second.key[-49:-6]
    assert world.page(search="twins", show_total_size=True).total_size == 2


def test_created_by_is_the_calling_key_as_it_was_called_then(world: World) -> None:
    """created_by holds the calling key's ID and its name at that time, even if that key is renamed later."""
    maker = world.create(name="deploy robot", scopes=["tumbler:keys:create"])
    made = world.create(key=maker.key).api_key
    world.update(maker.api_key.id, "name", name="something else")
    assert world.get(made.id).created_by == api_key_pb2.Actor(key_id=maker.api_key.id, name="deploy robot")


def test_ttl_counts_from_now(world: World) -> None:
    """A ttl becomes an expire_time, counted from the call."""
    created = world.create(ttl=lasting(90 * DAY)).api_key
    assert created.expire_time == at(world.clock.now + 90 * DAY)


def test_times_are_kept_to_the_microsecond(world: World) -> None:
    """Digits below a microsecond are dropped from timestamps and durations."""
    given = at(world.clock.now + DAY)
    given.nanos = 123_456_789
    created = world.create(expire_time=given).api_key
    assert created.expire_time.nanos == 123_456_000
    span = lasting(DAY)
    span.nanos = 1_999
    assert world.create(ttl=span).api_key.expire_time == at(world.clock.now + DAY + 1)


def test_the_token_names_the_revision_of_the_creation(world: World) -> None:
    """Create's consistency_token is valid for Verify at once, and such a Verify knows the key."""
    created = world.create()
    token = created.consistency_token
    assert token
    assert world.verdict(created.key, consistency={"at_least_as_fresh": token}) == "VALID"
    assert world.verify(created.key).consistency_token == token


def test_the_secret_is_needed(world: World) -> None:
    """A key with the right ID and a wrong secret is NOT_FOUND."""
    created = world.create()
    assert world.verdict(created.key) == "VALID"
    assert world.verdict(forged(created.key)) == "NOT_FOUND"


def test_validate_only_makes_nothing(world: World) -> None:
    """validate_only returns the key that would be made, without ID, text and token, and makes nothing."""
    before = len(world.events())
    answer = world.create(
        name="not yet", scopes=["a:b"], ttl=lasting(HOUR), rotation={"interval": lasting(DAY)}, validate_only=True
    )
    now = at(world.clock.now)
    assert answer == pb.CreateResponse(
        api_key=api_key_pb2.ApiKey(
            project_id="acme",
            name="not yet",
            scopes=["a:b"],
            state="STATE_ACTIVE",
            create_time=now,
            created_by=answer.api_key.created_by,
            update_time=now,
            expire_time=at(world.clock.now + HOUR),
            rotation={"interval": lasting(DAY), "next_time": at(world.clock.now + DAY)},
        )
    )
    assert len(world.events()) == before
    assert not world.page(project_id="acme").api_keys


def test_validate_only_checks_everything(world: World) -> None:
    """validate_only refuses the same requests as a real Create."""
    maker = world.caller("tumbler:keys:create")
    past = pb.CreateRequest(project_id="acme", expire_time=at(world.clock.now), validate_only=True)
    assert world.refused("Create", past).fields == ["expire_time"]
    greedy = pb.CreateRequest(project_id="acme", scopes=["tumbler:*"], validate_only=True)
    assert world.refused("Create", greedy, maker).reason == "SCOPE_ESCALATION"


def test_a_shorter_rotation_interval_can_be_allowed(world: World) -> None:
    """The shortest rotation interval is a setting of the server."""
    world.reopen(min_rotation_interval=DAY)
    short = pb.CreateRequest(project_id="acme", rotation={"interval": lasting(DAY - 1)})
    assert world.refused("Create", short).fields == ["rotation.interval"]
    world.reopen(min_rotation_interval=SECOND)
    assert world.create(rotation={"interval": lasting(SECOND)}).api_key.rotation.interval == lasting(SECOND)


JUST_ALLOWED: list[tuple[str, dict[str, Any]]] = [
    ("project of 128", {"project_id": "a" * 128}),
    ("project of one digit", {"project_id": "7"}),
    ("project with all signs", {"project_id": "A0._:/@+-z"}),
    ("environment of 128", {"environment_id": "-".join("e" * 64) + "-"}),
    ("name of 3", {"name": "abc"}),
    ("name of 255", {"name": "🔑" * 255}),
    ("name with blanks around", {"name": " a "}),
    ("owner of 255", {"owner_id": "o" * 255}),
    ("scope of 128", {"scopes": ["s" * 126 + ":*"]}),
    ("scope with all signs", {"scopes": ["Az09._/-:Az09._/-:*"]}),
    ("100 scopes", {"scopes": [f"s:{number}" for number in range(100)]}),
    ("100 scopes with repetitions", {"scopes": [f"s:{number}" for number in range(50)] * 2}),
    ("50 pairs of metadata", {"metadata": {f"k{number}": "v" for number in range(50)}}),
    ("longest metadata", {"metadata": {"k" * 64: "v" * 1_024, "ключ": "значение"}}),
    ("100 networks", {"allowed_cidrs": [f"10.0.0.{number}" for number in range(100)]}),
    ("a single IPv6 address", {"allowed_cidrs": ["2001:db8::1"]}),
    ("shortest ttl", {"ttl": lasting(1)}),
    ("longest ttl", {"ttl": lasting(36_500 * DAY)}),
    ("expiry in a microsecond", {"expire_time": at(1_893_456_000 * SECOND + 1)}),
    ("expiry in the year 9999", {"expire_time": at(YEAR_9999)}),
    ("shortest prefix", {"prefix": "ab"}),
    ("longest prefix", {"prefix": "a" * 16 + "_" + "9" * 15}),
    ("second part of one", {"prefix": "ab_1"}),
    ("shortest interval", {"rotation": {"interval": lasting(HOUR)}}),
    ("longest interval", {"rotation": {"interval": lasting(3_650 * DAY)}}),
]


@pytest.mark.parametrize("fields", [fields for _, fields in JUST_ALLOWED], ids=[name for name, _ in JUST_ALLOWED])
def test_limits_are_inclusive(world: World, fields: dict[str, Any]) -> None:
    """A value at the limit of its rule is accepted, and the key works."""
    created = world.create(**fields)
    assert world.verdict(created.key, client_ip=fields.get("allowed_cidrs", [""])[-1]) == "VALID"
    shown = world.get(created.api_key.id)
    for name in ("name", "owner_id", "environment_id", "expire_time"):
        if name in fields:
            assert getattr(shown, name) == fields[name]
    assert set(shown.scopes) == set(fields.get("scopes", []))
    assert dict(shown.metadata) == fields.get("metadata", {})
    assert len(shown.allowed_cidrs) == len(fields.get("allowed_cidrs", []))
