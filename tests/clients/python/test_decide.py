"""The client's rules, with the rows that test the server and every client."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_decide import instant
from tumbler._cache import KeyRecord
from tumbler.decide import Code, Demand, decide

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "vectors" / "verify.json").read_text())["vectors"]


def record_of(fields: dict[str, Any] | None) -> KeyRecord | None:
    """Return a row's record, as it would be cached."""
    if fields is None:
        return None
    known = {name: value for name, value in fields.items() if name not in ("revoke_time", "replaced_by_key_id")}
    for name in ("scopes", "allowed_cidrs"):
        known[name] = tuple(known.get(name, ()))
    for name in known.keys() & {"grace_expire_time", "expire_time"}:
        known[name] = instant(known[name])
    return KeyRecord("0123456789abcdef", revoked="revoke_time" in fields, **known)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_row(row: dict[str, Any]) -> None:
    """Each row is decided as the file says."""
    asked = {name: tuple(value) if isinstance(value, list) else value for name, value in row["request"].items()}
    assert decide(record_of(row["record"]), Demand(**asked), instant(row["now"])).name == row["code"]


def test_a_network_that_cannot_be_parsed() -> None:
    """It contains no address, and the others count as before."""
    for networks, code in [(("junk",), Code.IP_NOT_ALLOWED), (("junk", "192.0.2.0/24"), Code.VALID)]:
        record = KeyRecord("0123456789abcdef", "acme", allowed_cidrs=networks)
        assert decide(record, Demand(client_ip="192.0.2.1"), 0) is code
