"""Verdicts: the code and the fields of a response. `test_verify_fresh.py` has their freshness."""

import random
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.harness import World, at, forged, lasting
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, MINUTE
from tumbler_server.secrets.secret import generate

EVERYTHING: dict[str, Any] = {
    "environment_id": "live",
    "name": "worker",
    "owner_id": "alice",
    "scopes": ["orders:*", "a:b"],
    "metadata": {"team": "one"},
    "allowed_cidrs": ["192.0.2.0/24"],
    "ttl": lasting(DAY),
}

FITTING: dict[str, Any] = {
    "environment_id": "live",
    "client_ip": "192.0.2.7",
    "required_scopes": ["orders:read", "a:b"],
}


def test_a_valid_key_is_told_whole(world: World) -> None:
    """A VALID response holds everything that a caller's own decisions need, so that no Get is necessary."""
    created = world.create(**EVERYTHING)
    answer = world.verify(created.key, project_id="acme", **FITTING)
    assert answer == pb.VerifyResponse(
        valid=True,
        code="VERIFY_CODE_VALID",
        key_id=created.api_key.id,
        project_id="acme",
        environment_id="live",
        name="worker",
        owner_id="alice",
        scopes=["orders:*", "a:b"],
        metadata={"team": "one"},
        allowed_cidrs=["192.0.2.0/24"],
        expire_time=at(world.clock.now + DAY),
        cache_ttl=lasting(MINUTE),
        check_time=at(world.clock.now),
        revision=world.events()[-1].revision,
        consistency_token=created.consistency_token,
    )


DENIED: list[tuple[str, Callable[[World, str], object], dict[str, Any]]] = [
    ("REVOKED", lambda world, key_id: world.revoke(key_id), {}),
    ("SUPERSEDED", lambda world, key_id: world.rotate(key_id, grace_period=lasting(0)), {}),
    ("INACTIVE", lambda world, key_id: world.set_active(key_id, False), {}),
    ("EXPIRED", lambda world, _: world.clock.advance(DAY), {}),
    ("ENVIRONMENT_MISMATCH", lambda *_: None, {"environment_id": "test"}),
    ("IP_NOT_ALLOWED", lambda *_: None, {"client_ip": "198.51.100.1"}),
    ("INSUFFICIENT_SCOPE", lambda *_: None, {"required_scopes": ["orders:read", "b:c"]}),
]


@pytest.mark.parametrize(("code", "change", "demand"), DENIED, ids=[code for code, _, _ in DENIED])
def test_each_reason_to_deny_has_its_code(
    world: World, code: str, change: Callable[[World, str], object], demand: dict[str, Any]
) -> None:
    """A key with the right secret is denied in an OK response with the reason and the key's details."""
    created = world.create(**EVERYTHING)
    change(world, created.api_key.id)
    for _ in range(2):  # from the database, then from the cache
        answer = world.verify(created.key, **{**FITTING, **demand})
        assert (answer.valid, pb.VerifyCode.Name(answer.code)) == (False, f"VERIFY_CODE_{code}")
        assert (answer.key_id, answer.owner_id) == (created.api_key.id, "alice")
        assert list(answer.scopes) == ["orders:*", "a:b"]


def test_the_first_reason_decides(world: World) -> None:
    """If several reasons apply, the code is the first in the order of the contract."""
    created = world.create(**{**EVERYTHING, "ttl": lasting(2 * HOUR)})
    key_id = created.api_key.id
    demand = {"environment_id": "test", "client_ip": "198.51.100.1", "required_scopes": ["b:c"]}
    codes = []
    for field, fitting in FITTING.items():
        codes.append(world.verdict(created.key, **demand))
        demand[field] = fitting
    assert codes == ["ENVIRONMENT_MISMATCH", "IP_NOT_ALLOWED", "INSUFFICIENT_SCOPE"]
    assert world.verdict(created.key, **demand) == "VALID"

    demand = {"environment_id": "test", "client_ip": "198.51.100.1", "required_scopes": ["b:c"]}
    expired = world.create(**{**EVERYTHING, "ttl": lasting(HOUR)})
    world.rotate(key_id, grace_period=lasting(HOUR))
    world.set_active(key_id, False)
    assert world.verdict(created.key, **demand) == "INACTIVE"
    world.clock.advance(HOUR)
    assert world.verdict(created.key, **demand) == "SUPERSEDED"
    assert world.verdict(expired.key, **demand) == "EXPIRED"
    world.set_active(expired.api_key.id, False)
    assert world.verdict(expired.key, **demand) == "INACTIVE"
    world.clock.advance(HOUR)
    assert world.verdict(created.key, **demand) == "SUPERSEDED"
    world.revoke(key_id)
    assert world.verdict(created.key, **demand) == "REVOKED"


def _mangled(text: str) -> list[str]:
    typo = "A" if text[-10] != "A" else "B"
    return [
        "",
        "garbage",
        text[:-1],
        text + "A",
        " " + text,
        text + "\n",
        text.upper(),
        text[:-10] + typo + text[-9:],
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text.replace("_", "-"),
        text[:4] + text[5:4:-1] + text[6:] if text[4] != text[5] else text[1:],
        text * 2,
        "é" * len(text),
        "A" * 10_000,
        "\x00" * 70,
        "'; DROP TABLE api_key; --",
    ]


def test_what_is_no_key_is_malformed(world: World) -> None:
    """Text without a key's form, or with a wrong checksum, is MALFORMED, and the response has no details of a key."""
    created = world.create()
    assert world.verdict(created.key) == "VALID"
    for text in _mangled(created.key):
        answer = world.verify(text)
        assert answer == pb.VerifyResponse(
            code="VERIFY_CODE_MALFORMED",
            check_time=at(world.clock.now),
            revision=answer.revision,
            consistency_token=answer.consistency_token,
            any_project=True,  # the caller is an operator
        )


def test_a_typing_error_is_always_malformed(world: World) -> None:
    """Any one changed character makes a key MALFORMED, because the checksum fails."""
    text = world.create().key
    chance = random.Random(1)  # noqa: S311 - no secret
    for place in range(len(text)):
        other = chance.choice([char for char in keyformat.ALPHABET if char != text[place]])
        assert world.verdict(text[:place] + other + text[place + 1 :]) == "MALFORMED"


def test_not_found_tells_nothing(world: World) -> None:
    """An unknown ID, a wrong secret and a key of another project get byte for byte the same response."""
    caller = world.caller("tumbler:keys:verify", project_id="beta")
    created = world.create(**EVERYTHING)
    revoked = world.create(**EVERYTHING)
    world.revoke(revoked.api_key.id)
    own = world.create(project_id="beta")
    parsed = keyformat.parse(own.key)
    presented = {
        "unknown id": generate("tmb").text,
        "unknown prefix": generate("ship").text,
        "wrong secret": forged(own.key),
        "wrong prefix": keyformat.build("ship", parsed.id, parsed.secret),
        "key of another project": created.key,
        "revoked key of another project": revoked.key,
        "wrong secret of another project": forged(created.key),
    }
    answers = {}
    for _ in range(2):  # before and after the keys themselves were verified
        for name, text in presented.items():
            answer = world.verify(text, caller)
            assert pb.VerifyCode.Name(answer.code) == "VERIFY_CODE_NOT_FOUND"
            answers[answer.SerializeToString(deterministic=True)] = name
        assert len(answers) == 1
        assert world.verdict(own.key, caller) == "VALID"
        assert world.verdict(created.key, **FITTING) == "VALID"
    (only,) = answers
    assert pb.VerifyResponse.FromString(only) == pb.VerifyResponse(
        code="VERIFY_CODE_NOT_FOUND",
        check_time=at(world.clock.now),
        revision=world.events()[-1].revision,
        consistency_token=own.consistency_token,
    )


def test_the_prefix_is_part_of_the_key(world: World) -> None:
    """A key with another prefix and a matching checksum is NOT_FOUND, before and after a Verify of the real key."""
    created = world.create(prefix="acme_live")
    parsed = keyformat.parse(created.key)
    other = keyformat.build("acme_test", parsed.id, parsed.secret)
    assert world.verdict(other) == "NOT_FOUND"
    assert world.verdict(created.key) == "VALID"
    assert world.verdict(other) == "NOT_FOUND"
    assert world.verdict(created.key) == "VALID"


@pytest.mark.parametrize(
    ("named", "expected"), [("", "VALID"), ("acme", "VALID"), ("beta", "NOT_FOUND"), ("Acme", "NOT_FOUND")]
)
def test_an_operator_may_ask_for_a_project(world: World, named: str, expected: str) -> None:
    """If the request names a project, a key of another project is NOT_FOUND."""
    assert world.verdict(world.create().key, project_id=named) == expected


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ("", "", "VALID"),
        ("live", "", "VALID"),
        ("live", "live", "VALID"),
        ("live", "test", "ENVIRONMENT_MISMATCH"),
        ("live", "Live", "ENVIRONMENT_MISMATCH"),
        ("", "live", "ENVIRONMENT_MISMATCH"),
    ],
)
def test_an_environment_is_asked_for_by_name(world: World, own: str, asked: str, expected: str) -> None:
    """If the request names an environment, the key must belong to it; a key without an environment belongs to none."""
    assert world.verdict(world.create(environment_id=own).key, environment_id=asked) == expected


@pytest.mark.parametrize(
    ("granted", "required", "expected"),
    [
        ([], [], True),
        ([], ["a"], False),
        (["a"], [], True),
        (["a:b"], ["a:b"], True),
        (["a:b"], ["a:c"], False),
        (["a:b"], ["A:B"], False),
        (["a:b"], ["a:b:c"], False),
        (["a:b:c"], ["a:b"], False),
        (["a:*"], ["a:b"], True),
        (["a:*"], ["a:b:c"], True),
        (["a:*"], ["a"], False),
        (["a:*"], ["ab"], False),
        (["a:b:*"], ["a:c"], False),
        (["*"], ["a", "a:b:c"], True),
        (["*"], ["tumbler:keys:read"], False),
        (["*"], ["tumbler"], True),
        (["tumbler:*"], ["tumbler:keys:read"], True),
        (["a:b", "c:*"], ["c:d", "a:b"], True),
        (["a:b", "c:*"], ["c:d", "a:d"], False),
    ],
)
def test_scopes_grant_what_they_say(world: World, granted: list[str], required: list[str], expected: bool) -> None:
    """A scope grants itself, `a:*` all below `a`, and `*` all but this service's own; each required scope counts."""
    text = world.create(scopes=granted).key
    assert world.verdict(text, required_scopes=required) == ("VALID" if expected else "INSUFFICIENT_SCOPE")


@pytest.mark.parametrize(
    ("networks", "client_ip", "expected"),
    [
        ([], "", True),
        ([], "198.51.100.1", True),
        (["192.0.2.0/24"], "", False),
        (["192.0.2.0/24"], "192.0.2.0", True),
        (["192.0.2.0/24"], "192.0.2.255", True),
        (["192.0.2.0/24"], "192.0.3.0", False),
        (["192.0.2.0/24"], "::ffff:192.0.2.9", True),
        (["192.0.2.0/24"], "::ffff:c000:209", True),
        (["192.0.2.0/24"], "::192.0.2.9", False),
        (["192.0.2.7"], "192.0.2.7", True),
        (["192.0.2.7"], "192.0.2.6", False),
        (["2001:db8::/32"], "2001:DB8:0:0::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["0.0.0.0/0"], "2001:db8::1", False),
        (["::/0"], "192.0.2.1", False),
        (["192.0.2.7", "2001:db8::/32"], "2001:db8::1", True),
    ],
)
def test_a_key_is_bound_to_its_networks(world: World, networks: list[str], client_ip: str, expected: bool) -> None:
    """With allowed_cidrs, the client's address must be given and lie in one of them; IPv4-mapped counts as IPv4."""
    text = world.create(allowed_cidrs=networks).key
    assert world.verdict(text, client_ip=client_ip) == ("VALID" if expected else "IP_NOT_ALLOWED")


INVALID: list[tuple[dict[str, Any], str]] = [
    *(
        ({"client_ip": value}, "client_ip")
        for value in (
            "localhost",
            "192.0.2",
            "192.0.2.1:80",
            "192.0.2.0/24",
            "[::1]",
            "192.0.2.256",
            "fe80::1%eth0",
            " ::1",
        )
    ),
    *(
        ({"required_scopes": ["fine", value]}, "required_scopes[1]")
        for value in ("", "a:*", "*", "two words", "s" * 129, "a::b")
    ),
    ({"required_scopes": [f"s:{number}" for number in range(101)]}, "required_scopes"),
    ({"project_id": "p" * 129}, "project_id"),
    ({"environment_id": "a b"}, "environment_id"),
]


@pytest.mark.parametrize(
    ("fields", "path"), INVALID, ids=[f"{path}={next(iter(fields.values()))!a:.24}" for fields, path in INVALID]
)
def test_a_question_that_cannot_be_meant_is_refused(world: World, fields: dict[str, Any], path: str) -> None:
    """A malformed request is INVALID_ARGUMENT and never a verdict."""
    text = world.create(scopes=["*"]).key
    refused = world.refused("Verify", pb.VerifyRequest(key=text, **fields))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [path])
