"""Create: refused requests, field by field. Update shares most of these rules: see `test_update.py`."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, SECOND

NOW = 1_893_456_000 * SECOND

TENANTS = ["-acme", ".acme", "a" * 129, "two words", "a\nb", "a\x00", "ácme", "a%b", "a*"]

SCOPES = ["", "two words", "a::b", ":a", "a:", "a:*:b", "*:a", "a*", "**", "a:**", "é", "a,b", "a\n", "s" * 129]

CIDRS = [
    "",
    "localhost",
    "192.0.2.7/24",
    "2001:db8::1/32",
    "192.0.2.0/33",
    "192.0.2.0/255.255.255.0",
    "192.0.2.0/",
    "192.0.02.1",
    "192.0.2",
    "fe80::1%eth0",
    "::ffff:192.0.2.0/120",
    " 192.0.2.1",
    "1" * 65,
]

PREFIXES = ["a", "Acme", "1acme", "_acme", "acme_", "acme-live", "acme__live", "acme_live_eu", "acme ", "éé"]
PREFIXES += ["a" * 17, "ab_" + "9" * 16]

NAMES = ["ab", "n" * 256, "   ", "a\x00b", "a\nb", "a\tb", "a\x7fb", "a\u2028b", "a\u2029b"]

INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("project missing", {"project_id": ""}, "project_id"),
    *((f"project {value!a:.20}", {"project_id": value}, "project_id") for value in TENANTS),
    *((f"environment {value!a:.20}", {"environment_id": value}, "environment_id") for value in TENANTS),
    *((f"name {value!a:.20}", {"name": value}, "name") for value in NAMES),
    ("owner too long", {"owner_id": "o" * 256}, "owner_id"),
    ("owner with a control character", {"owner_id": "o\x1b[2J"}, "owner_id"),
    *((f"scope {value!a:.20}", {"scopes": ["fine", value, "fine:*"]}, "scopes[1]") for value in SCOPES),
    ("101 scopes", {"scopes": [f"s:{number}" for number in range(101)]}, "scopes"),
    ("51 pairs of metadata", {"metadata": {f"k{number}": "" for number in range(51)}}, "metadata"),
    ("metadata without a key", {"metadata": {"": "v", "fine": "v"}}, "metadata[0]"),
    ("metadata key too long", {"metadata": {"k" * 65: "v", "fine": "v"}}, "metadata[1]"),
    ("metadata key with a control character", {"metadata": {"k\n": "v"}}, "metadata[0]"),
    ("metadata value too long", {"metadata": {"note": "v" * 1_025}}, "metadata['note']"),
    ("metadata value with a control character", {"metadata": {"note": "v\x00"}}, "metadata['note']"),
    *((f"network {value!a:.24}", {"allowed_cidrs": ["10.0.0.0/8", value]}, "allowed_cidrs[1]") for value in CIDRS),
    ("101 networks", {"allowed_cidrs": [f"10.0.0.{number}" for number in range(101)]}, "allowed_cidrs"),
    ("expiry now", {"expire_time": at(NOW)}, "expire_time"),
    ("expiry in the past", {"expire_time": at(NOW - DAY)}, "expire_time"),
    ("expiry before 1970", {"expire_time": Timestamp(seconds=-1)}, "expire_time"),
    ("expiry in the year 10000", {"expire_time": Timestamp(seconds=253_402_300_800)}, "expire_time"),
    ("expiry in the year 0", {"expire_time": Timestamp(seconds=-62_135_596_801)}, "expire_time"),
    ("expiry of too many nanoseconds", {"expire_time": Timestamp(seconds=2**32, nanos=10**9)}, "expire_time"),
    ("expiry of negative nanoseconds", {"expire_time": Timestamp(seconds=2**32, nanos=-1)}, "expire_time"),
    ("ttl 0", {"ttl": lasting(0)}, "ttl"),
    ("ttl too short to keep", {"ttl": Duration(nanos=999)}, "ttl"),
    ("ttl negative", {"ttl": lasting(-1)}, "ttl"),
    ("ttl too long", {"ttl": lasting(36_500 * DAY + 1)}, "ttl"),
    ("ttl of two signs", {"ttl": Duration(seconds=1, nanos=-1)}, "ttl"),
    ("ttl of two other signs", {"ttl": Duration(seconds=-1, nanos=1)}, "ttl"),
    ("ttl of too many nanoseconds", {"ttl": Duration(seconds=1, nanos=10**9)}, "ttl"),
    ("ttl of too many seconds", {"ttl": Duration(seconds=315_576_000_001)}, "ttl"),
    *((f"prefix {value!a:.20}", {"prefix": value}, "prefix") for value in PREFIXES),
    ("interval too short", {"rotation": {"interval": lasting(HOUR - 1)}}, "rotation.interval"),
    ("interval 0", {"rotation": {"interval": lasting(0)}}, "rotation.interval"),
    ("interval negative", {"rotation": {"interval": lasting(-DAY)}}, "rotation.interval"),
    ("interval too long", {"rotation": {"interval": lasting(3_650 * DAY + 1)}}, "rotation.interval"),
    ("interval missing", {"rotation": {}}, "rotation.interval"),
    (
        "webhook",
        {"rotation": {"interval": lasting(DAY), "webhook_url": "http://example.com/"}},
        "rotation.webhook_url",
    ),
]


@pytest.mark.parametrize(
    ("fields", "path"), [(fields, path) for _, fields, path in INVALID], ids=[name for name, _, _ in INVALID]
)
def test_a_field_that_breaks_its_rule_is_named(world: World, fields: dict[str, Any], path: str) -> None:
    """An invalid value is INVALID_ARGUMENT, BadRequest has the field's path, and nothing is made."""
    before = len(world.events())
    refused = world.refused("Create", pb.CreateRequest(**{"project_id": "acme", **fields}))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert refused.fields == [path]
    assert len(world.events()) == before


def test_all_that_is_wrong_is_told_at_once(world: World) -> None:
    """All violations are in one response, each with its path."""
    request = pb.CreateRequest(
        environment_id="li ve",
        name="ab",
        scopes=["fine", "not fine", "fine:too", "a::b"],
        metadata={"note": "\x00"},
        allowed_cidrs=["10.0.0.1/8"],
        ttl=lasting(-1),
        prefix="ACME",
        rotation={"interval": lasting(1), "webhook_url": "http://example.com/"},
    )
    refused = world.refused("Create", request)
    assert sorted(refused.fields) == [
        "allowed_cidrs[0]",
        "environment_id",
        "metadata['note']",
        "name",
        "prefix",
        "project_id",
        "rotation.interval",
        "rotation.webhook_url",
        "scopes[1]",
        "scopes[3]",
        "ttl",
    ]


@pytest.mark.parametrize("field", ["name", "owner_id", "scopes", "allowed_cidrs", "prefix", "request_id"])
def test_a_secret_in_the_wrong_field_is_not_repeated(world: World, field: str) -> None:
    """A whole key in another field is refused without being quoted."""
    pasted = world.create().key
    value = pasted + "\n"
    fields = {field: [value] if field in ("scopes", "allowed_cidrs") else value}
    refused = world.refused("Create", pb.CreateRequest(project_id="acme", **fields))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert pasted[-49:] not in refused.message
    assert pasted[-49:].encode() not in refused.status.SerializeToString()
