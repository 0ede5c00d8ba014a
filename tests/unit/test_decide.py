"""The verdict: the shared vectors, and properties of every record and request."""

import calendar
import enum
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from hypothesis import given
from hypothesis import strategies as st

from tumbler.decide import Code, Demand, decide, parse_address
from tumbler.v1 import api_key_pb2, api_key_service_pb2, event_pb2
from tumbler_server.clock import NEVER, SECOND
from tumbler_server.events.log import EventType
from tumbler_server.keys.record import REVOKE_REASONS, Key, State

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors" / "verify.json").read_text())[
    "vectors"
]

NOT_DECIDED_HERE = {Code.UNSPECIFIED, Code.MALFORMED}

TIMES = ("revoke_time", "grace_expire_time", "expire_time")


def instant(text: str) -> int:
    """Return a row's RFC 3339 text in microseconds."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?Z", text)
    assert match is not None, text
    seconds = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    return seconds * SECOND + int((match[2] or "").ljust(6, "0"))


def key_of(record: dict[str, Any] | None) -> Key | None:
    """Return a row's record; missing fields are those of a key without restrictions or end."""
    if record is None:
        return None
    fields = {name: instant(value) if name in TIMES else value for name, value in record.items()}
    fields["scopes"] = tuple(fields.get("scopes", ()))
    fields["allowed_cidrs"] = tuple(fields.get("allowed_cidrs", ()))
    return Key(id="0123456789abcdef", **fields)


def demand_of(request: dict[str, Any]) -> Demand:
    """Return a row's request."""
    return Demand(**{name: tuple(value) if isinstance(value, list) else value for name, value in request.items()})


class TestVectors:
    """The vectors that the server and every client must pass."""

    @pytest.mark.parametrize("row", VECTORS, ids=lambda row: row["name"])
    def test_row(self, row: dict[str, Any]) -> None:
        """Each row has the verdict in the file."""
        assert decide(key_of(row["record"]), demand_of(row["request"]), instant(row["now"])).name == row["code"]

    def test_names(self) -> None:
        """Names are unique, so that a client can report the row that failed."""
        names = [row["name"] for row in VECTORS]
        assert len(names) == len(set(names)) >= 80

    def test_every_code_is_there(self) -> None:
        """The rows cover every code that decide can return."""
        assert {row["code"] for row in VECTORS} == {code.name for code in Code if code not in NOT_DECIDED_HERE}

    def test_every_pair_of_precedence_is_there(self) -> None:
        """For every two reasons to deny there is a row with both, and the earlier one decides."""
        reasons = [code.name for code in Code if code not in (Code.VALID, *NOT_DECIDED_HERE)]
        rows = {row["name"]: row["code"] for row in VECTORS}
        for number, earlier in enumerate(reasons):
            for later in reasons[number + 1 :]:
                assert rows[f"{earlier} comes before {later}"] == earlier


class TestNumbers:
    """Numbers that are sent unchanged."""

    @pytest.mark.parametrize(
        ("ours", "protos", "prefix"),
        [
            (Code, api_key_service_pb2.VerifyCode, "VERIFY_CODE_"),
            (State, api_key_pb2.State, "STATE_"),
            (EventType, event_pb2.KeyEventType, "KEY_EVENT_TYPE_"),
        ],
        ids=["VerifyCode", "State", "KeyEventType"],
    )
    def test_enums(self, ours: type[enum.IntEnum], protos: EnumTypeWrapper, prefix: str) -> None:
        """Each enum of the domain has the proto's names and numbers, except the unspecified zero."""
        expected = {name.removeprefix(prefix): number for name, number in protos.items() if number}
        assert {member.name: member.value for member in ours if member} == expected

    def test_revoke_reasons(self) -> None:
        """The revoke reasons have the proto's numbers, zero included, and its names in lower case."""
        protos = {
            number: name.removeprefix("REVOKE_REASON_").lower() for name, number in api_key_pb2.RevokeReason.items()
        }
        assert protos == REVOKE_REASONS


_texts = st.text(max_size=20)
_scopes = st.lists(st.sampled_from(["*", "orders", "orders:*", "orders:read", "tumbler:*", "a*", ":*"]) | _texts)
_times = st.sampled_from([0, 1, 2, 3, NEVER])
_networks = st.lists(st.ip_addresses().map(str) | st.sampled_from(["0.0.0.0/0", "::/0", "192.0.2.0/24"]))
_keys = st.builds(
    Key,
    id=st.just("0123456789abcdef"),
    project_id=_texts,
    environment_id=_texts,
    scopes=_scopes.map(tuple),
    allowed_cidrs=_networks.map(tuple),
    active=st.booleans(),
    expire_time=_times,
    revoke_time=_times,
    grace_expire_time=_times,
)
_demands = st.builds(
    Demand,
    project_ids=st.lists(_texts, max_size=2).map(tuple),
    environment_id=_texts,
    required_scopes=_scopes.map(tuple),
    client_ip=_texts | st.ip_addresses().map(str),
)


class TestDecide:
    """Properties of every record and request."""

    @given(st.none() | _keys, _demands, st.integers(0, 4))
    def test_total(self, key: Key | None, demand: Demand, now: int) -> None:
        """Every record and request has a verdict, whatever text the request contains."""
        assert decide(key, demand, now) in set(Code) - NOT_DECIDED_HERE

    @given(_keys, _demands, st.integers(0, 3))
    def test_what_has_ended_stays_ended(self, key: Key, demand: Demand, now: int) -> None:
        """A record that is revoked, superseded or expired is never valid later."""
        if decide(key, demand, now) in (Code.REVOKED, Code.SUPERSEDED, Code.EXPIRED):
            assert decide(key, demand, now + 1) is not Code.VALID

    @given(_keys, _demands, _scopes)
    def test_asking_for_more_allows_no_more(self, key: Key, demand: Demand, more: list[str]) -> None:
        """A denied request stays denied if it requires more scopes."""
        wider = Demand(
            demand.project_ids, demand.environment_id, (*demand.required_scopes, *more), client_ip=demand.client_ip
        )
        if decide(key, demand, 0) is not Code.VALID:
            assert decide(key, wider, 0) is not Code.VALID

    def test_a_demand_for_nothing_is_the_default(self) -> None:
        """An empty demand requires nothing."""
        assert decide(Key(id="0123456789abcdef", project_id="acme"), Demand(), 0) is Code.VALID

    @pytest.mark.parametrize(
        ("text", "version"),
        [("192.0.2.7", 4), ("::ffff:192.0.2.7", 4), ("2001:db8::1", 6), ("::1", 6), ("", None), ("fe80::1%eth0", None)],
    )
    def test_addresses(self, text: str, version: int | None) -> None:
        """A text is an IPv4 address, an IPv6 address or neither; an address with a zone is neither."""
        address = parse_address(text)
        assert (address and address.version) == version
