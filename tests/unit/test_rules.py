"""The rules for a request's fields."""

import string
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from tumbler_server.clock import DAY, HOUR
from tumbler_server.errors import InvalidFields
from tumbler_server.keys import rules
from tumbler_server.keys.rules import (
    MAX_CIDRS,
    MAX_GRACE,
    MAX_ROTATION_INTERVAL,
    MAX_SCOPES,
    MAX_TTL,
    Validation,
    is_scope,
)

UUID = "123e4567-e89b-42d3-a456-426614174000"
NOW = 1_893_456_000_000_000


def broken(rule: Callable[[Validation], Any]) -> list[str]:
    """Return the paths of the fields that violate a rule."""
    check = Validation()
    rule(check)
    try:
        check.done()
    except InvalidFields as refused:
        return [violation.field for violation in refused.violations]
    return []


def returned(rule: Callable[[Validation], Any]) -> Any:
    """Return what a rule returns for a valid value."""
    check = Validation()
    value = rule(check)
    check.done()
    return value


def text_id(value: object) -> str:
    """Return a test id: the value, shortened."""
    shown = ascii(value)
    return shown if len(shown) <= 40 else f"{shown[:30]}…({len(value)})"  # type: ignore[arg-type]


class TestKeyId:
    """A key's id."""

    @pytest.mark.parametrize("value", ["0123456789abcdef", "ABCDEFGHIJKLMNOP", "zzzzzzzzzzzzzzzz"])
    def test_accepted(self, value: str) -> None:
        """A key's id is 16 base62 characters."""
        assert returned(lambda check: check.key_id("key_id", value)) == value

    @pytest.mark.parametrize(
        "value",
        ["", "0" * 15, "0" * 17, "0" * 15 + "_", "0" * 15 + "-", "0" * 15 + "\n", "0" * 16 + "\n", "é" * 16, "٣" * 16],
        ids=text_id,
    )
    def test_refused(self, value: str) -> None:
        """Any other text is refused as an id."""
        assert broken(lambda check: check.key_id("key_id", value)) == ["key_id"]


TENANTS = ["a", "7", "acme", "Acme-2.prod", "a_b", "urn:acme/eu@west+1", "a" * 128]
NO_TENANTS = ["-a", ".a", "_a", ":a", " a", "a ", "a b", "a\n", "a" * 129, "ä", "a,b", "a*", "a\x00"]


class TestProjectAndEnvironment:
    """Ids that callers choose."""

    @pytest.mark.parametrize("value", TENANTS, ids=text_id)
    def test_accepted(self, value: str) -> None:
        """A project or environment id has 1–128 characters of a small ASCII set, and starts with a letter or digit."""
        assert returned(lambda check: check.project("project_id", value)) == value
        assert returned(lambda check: check.filter("environment_id", value)) == value

    @pytest.mark.parametrize("value", NO_TENANTS, ids=text_id)
    def test_refused(self, value: str) -> None:
        """Any other text is refused as a project or environment id."""
        assert broken(lambda check: check.project("project_id", value)) == ["project_id"]
        assert broken(lambda check: check.filter("environment_id", value)) == ["environment_id"]

    def test_left_out(self) -> None:
        """An environment may be left out; a project is required."""
        assert broken(lambda check: check.filter("environment_id", "")) == []
        assert broken(lambda check: check.project("project_id", "")) == ["project_id"]


CONTROLS = [
    "a\nbc", "a\tbc", "abc\r", "abc\x00", "abc\x1b[31m", "abc\x7f", "abc\x85", "a\u2028bc", "a\u2029bc", "abc\ud800"
]  # fmt: skip


class TestName:
    """A key's name."""

    @pytest.mark.parametrize(
        "value", ["abc", "My key #1 (live)", "a" * 255, "ключ", "鍵の名前", " a ", "e\u0301\u0302"], ids=text_id
    )
    def test_accepted(self, value: str) -> None:
        """A name has 3–255 characters of any script."""
        assert returned(lambda check: check.name("name", value)) == value

    @pytest.mark.parametrize("value", ["a", "ab", "a" * 256, "   ", "\u3000\u3000\u3000", *CONTROLS], ids=text_id)
    def test_refused(self, value: str) -> None:
        """A name that is too short, too long, blank or contains control characters is refused."""
        assert broken(lambda check: check.name("name", value)) == ["name"]

    def test_left_out(self) -> None:
        """A key without a name is called `default`."""
        assert returned(lambda check: check.name("name", "")) == "default"


class TestText:
    """Optional texts."""

    @pytest.mark.parametrize("value", ["", "a", "a" * 255, "ключ", " "], ids=text_id)
    def test_accepted(self, value: str) -> None:
        """A text may be empty, and has at most the given number of characters."""
        assert returned(lambda check: check.text("owner_id", value, 255)) == value

    @pytest.mark.parametrize("value", ["a" * 256, *CONTROLS], ids=text_id)
    def test_refused(self, value: str) -> None:
        """A text that is too long or contains control characters is refused."""
        assert broken(lambda check: check.text("owner_id", value, 255)) == ["owner_id"]


class TestPrefix:
    """The prefix of a key's text."""

    @pytest.mark.parametrize("value", ["ab", "a1", "acme_live", "a" * 16, "a" * 16 + "_" + "b" * 15, "ab_1"])
    def test_accepted(self, value: str) -> None:
        """A prefix has one or two parts of lower-case letters and digits, and starts with a letter."""
        assert returned(lambda check: check.prefix("prefix", value, "tmb")) == value

    @pytest.mark.parametrize(
        "value",
        ["a", "1a", "Ab", "a" * 17, "ab_" + "b" * 16, "ab_", "_ab", "ab__c", "ab_c_d", "a-b", "ab\n", "äb"],
        ids=text_id,
    )
    def test_refused(self, value: str) -> None:
        """Any other text is refused as a prefix."""
        assert broken(lambda check: check.prefix("prefix", value, "tmb")) == ["prefix"]

    def test_left_out(self) -> None:
        """The default prefix is the server's."""
        assert returned(lambda check: check.prefix("prefix", "", "acme_dev")) == "acme_dev"


SCOPES = ["orders", "orders:read", "orders:read:own", "A.z_0/9-b", "a" * 128, "-", ".", "/"]
WILDCARDS = ["*", "orders:*", "orders:read:*", "tumbler:*"]
NO_SCOPES = [
    "", ":", "orders:", ":read", "orders::read", "orders read", "orders,read", "orders\n", "a" * 129,
    "orders*", "orders:*:read", "*:read", "**", "orders:**", "ordérs", "orders:\x00", '"', "\\",
]  # fmt: skip


class TestScopes:
    """Scopes that a key carries, and scopes that a verification requires."""

    @pytest.mark.parametrize("value", [*SCOPES, *WILDCARDS], ids=text_id)
    def test_granted(self, value: str) -> None:
        """A key's scope is segments joined by colons, of which the last may be `*`, or just `*`."""
        assert returned(lambda check: check.granted_scopes("scopes", [value])) == (value,)

    @pytest.mark.parametrize("value", SCOPES, ids=text_id)
    def test_required(self, value: str) -> None:
        """A required scope is segments joined by colons."""
        assert returned(lambda check: check.required_scopes("required_scopes", [value])) == (value,)

    @pytest.mark.parametrize("value", NO_SCOPES, ids=text_id)
    def test_refused(self, value: str) -> None:
        """Any other text is refused as a scope, and the path has its index."""
        assert broken(lambda check: check.granted_scopes("api_key.scopes", ["a", "b", "c", value])) == [
            "api_key.scopes[3]"
        ]
        assert broken(lambda check: check.required_scopes("required_scopes", [value])) == ["required_scopes[0]"]

    @pytest.mark.parametrize(
        ("value", "scope"),
        [*((value, True) for value in (*SCOPES, *WILDCARDS)), *((value, False) for value in NO_SCOPES)],
        ids=text_id,
    )
    def test_is_scope(self, value: str, scope: bool) -> None:
        """is_scope accepts what a key may carry, wildcards included, and nothing else."""
        assert is_scope(value) is scope

    @pytest.mark.parametrize("value", WILDCARDS)
    def test_no_wildcard_is_required(self, value: str) -> None:
        """A verification cannot require a wildcard."""
        assert broken(lambda check: check.required_scopes("required_scopes", [value])) == ["required_scopes[0]"]

    def test_duplicates(self) -> None:
        """A duplicate scope is dropped, and the order is kept."""
        assert returned(lambda check: check.granted_scopes("scopes", ["b", "a", "b"])) == ("b", "a")

    def test_how_many(self) -> None:
        """A key carries at most 100 different scopes."""
        scopes = [f"s{number}" for number in range(MAX_SCOPES + 1)]
        assert broken(lambda check: check.granted_scopes("scopes", scopes[:-1])) == []
        assert broken(lambda check: check.granted_scopes("scopes", scopes)) == ["scopes"]
        assert broken(lambda check: check.granted_scopes("scopes", ["a"] * (MAX_SCOPES + 1))) == []

    def test_a_flood(self) -> None:
        """A request with very many bad scopes gets a bounded number of violations."""
        assert len(broken(lambda check: check.granted_scopes("scopes", ["bad one"] * 50_000))) <= MAX_SCOPES + 3

    def test_any_iterable(self) -> None:
        """Scopes in an iterator are checked, too."""
        assert broken(lambda check: check.granted_scopes("scopes", iter(["a", "not a scope"]))) == ["scopes[1]"]


def test_controls() -> None:
    """The control characters are those of Unicode's categories Cc, Cs, Zl and Zp, and no others."""
    every = [chr(number) for number in range(0x110000)]
    controls = {char for char in every if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")}
    assert {char for char in every if rules._CONTROLS.search(char)} == controls
    assert {char for char in every if rules._CONTROLS_IN_A_TEXT.search(char)} == controls - set("\t\n\r")


class TestMetadata:
    """A key's metadata."""

    @pytest.mark.parametrize(
        "values",
        [{}, {"a": ""}, {"a" * 64: "b" * 1_024}, {"ключ": "線\tline\r\n"}, {str(number): "" for number in range(50)}],
        ids=["none", "an empty value", "the longest", "any script, tab and newline", "fifty"],
    )
    def test_accepted(self, values: dict[str, str]) -> None:
        """Metadata has at most 50 pairs, with keys of 1–64 and values of at most 1,024 characters."""
        assert returned(lambda check: check.metadata("metadata", values)) == values

    @pytest.mark.parametrize(
        ("values", "paths"),
        [
            ({str(number): "" for number in range(51)}, ["metadata"]),
            ({"": "a"}, ["metadata[0]"]),
            ({"b": "a", "c" * 65: "a"}, ["metadata[1]"]),
            ({"a\n": "a"}, ["metadata[0]"]),
            ({"team": "a" * 1_025}, ["metadata['team']"]),
            ({"team": "a\x00"}, ["metadata['team']"]),
            ({"team": "\x1b[31m", "": ""}, ["metadata[0]", "metadata['team']"]),
        ],
        ids=["too many", "an empty key", "a long key", "a control character in a key", "a long value", "a NUL", "two"],
    )
    def test_refused(self, values: dict[str, str], paths: list[str]) -> None:
        """A bad value is reported by its key, a bad key by its index in sorted order."""
        assert broken(lambda check: check.metadata("metadata", values)) == paths


class TestCidrs:
    """The networks that a key may be used from."""

    @pytest.mark.parametrize(
        ("value", "canonical"),
        [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/32", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:0DB8:0:0::/32", "2001:db8::/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::/0", "::/0"),
        ],
    )
    def test_accepted(self, value: str, canonical: str) -> None:
        """A network is stored in its canonical form; a single address becomes a network of one."""
        assert returned(lambda check: check.cidrs("allowed_cidrs", [value])) == (canonical,)

    @pytest.mark.parametrize(
        "value",
        [
            "", "x", "192.0.2.7/24", "192.0.2.0/33", "192.0.2.0/-1", "192.0.2.0/", "/24", "192.0.2.0/255.255.255.0",
            "192.0.2.0/0.0.0.255", "192.0.2", "192.0.02.0/24", "3221225984", "192.0.2.0/24 ", "192.0.2.0 /24",
            "2001:db8::1/32", "2001:db8::/129", "fe80::1%eth0", "fe80::%1/64", "::ffff:192.0.2.0/120", "::ffff:0:0/96",
            "example.com", "192.0.2.0/2\u0664", "0" * 65,
        ],
        ids=text_id,
    )  # fmt: skip
    def test_refused(self, value: str) -> None:
        """Host bits, masks, zones, IPv4-mapped networks and anything else are refused."""
        assert broken(lambda check: check.cidrs("api_key.allowed_cidrs", ["192.0.2.0/24", value])) == [
            "api_key.allowed_cidrs[1]"
        ]

    def test_duplicates(self) -> None:
        """The same network in two spellings is kept once, and the order is kept."""
        values = ["2001:db8::/32", "192.0.2.7", "2001:DB8::/32", "192.0.2.7/32"]
        assert returned(lambda check: check.cidrs("allowed_cidrs", values)) == ("2001:db8::/32", "192.0.2.7/32")

    def test_how_many(self) -> None:
        """A key has at most 100 networks."""
        values = [f"192.0.2.{number}" for number in range(MAX_CIDRS + 1)]
        assert broken(lambda check: check.cidrs("allowed_cidrs", values[:-1])) == []
        assert broken(lambda check: check.cidrs("allowed_cidrs", values)) == ["allowed_cidrs"]


class TestAddress:
    """The address that a key is presented from."""

    @pytest.mark.parametrize("value", ["", "192.0.2.7", "2001:db8::1", "::1", "::ffff:192.0.2.7", "2001:DB8:0::1"])
    def test_accepted(self, value: str) -> None:
        """An address is IPv4 or IPv6, or left out."""
        assert returned(lambda check: check.address("client_ip", value)) == value

    @pytest.mark.parametrize(
        "value",
        ["x", "192.0.2.7/32", "192.0.2.7:80", "[::1]", "192.0.2", "fe80::1%eth0", " ::1", "1" * 65],
        ids=text_id,
    )
    def test_refused(self, value: str) -> None:
        """Any other text is refused as an address."""
        assert broken(lambda check: check.address("client_ip", value)) == ["client_ip"]


class TestRequestId:
    """The idempotency key of a request."""

    @pytest.mark.parametrize(("value", "kept"), [("", ""), (UUID, UUID), (UUID.upper(), UUID)])
    def test_accepted(self, value: str, kept: str) -> None:
        """A request id is a UUID, in upper or lower case, or left out."""
        assert returned(lambda check: check.request_id("request_id", value)) == kept

    @pytest.mark.parametrize(
        "value",
        ["x", UUID[:-1], UUID + "0", UUID.replace("-", ""), f"{{{UUID}}}", "g" + UUID[1:], UUID + "\n"],
        ids=text_id,
    )
    def test_refused(self, value: str) -> None:
        """Any other text is refused as a request id."""
        assert broken(lambda check: check.request_id("request_id", value)) == ["request_id"]


class TestTimes:
    """Durations and instants."""

    @pytest.mark.parametrize(
        ("rule", "value", "accepted"),
        [
            ("ttl", None, True),
            ("ttl", 1, True),
            ("ttl", MAX_TTL, True),
            ("ttl", MAX_TTL + 1, False),
            ("ttl", 0, False),
            ("ttl", -1, False),
        ],
    )
    def test_spans(self, rule: str, value: int | None, accepted: bool) -> None:
        """A ttl is positive and at most 36,500 days."""
        assert broken(lambda check: getattr(check, rule)("field", value)) == ([] if accepted else ["field"])

    @pytest.mark.parametrize(
        ("value", "ends", "fields"),
        [
            (0, 0, []),
            (0, 1, []),
            (0, 2, ["grace_period"]),
            (1, 2, []),
            (MAX_GRACE, 2, []),
            (MAX_GRACE + 1, 0, ["grace_period"]),
            (-1, 0, ["grace_period"]),
            (0, 3, ["old_key_ends"]),
            (-1, -1, ["old_key_ends", "grace_period"]),
        ],
    )
    def test_grace(self, value: int, ends: int, fields: list[str]) -> None:
        """A grace period is 0 to 30 days, but not 0 if the old key ends on first use; old_key_ends is a known value."""
        assert broken(lambda check: check.grace(value, ends)) == fields

    def test_limits(self) -> None:
        """The limits are those in the contract."""
        assert (MAX_GRACE, MAX_TTL, MAX_ROTATION_INTERVAL) == (30 * DAY, 36_500 * DAY, 3_650 * DAY)

    @pytest.mark.parametrize(
        ("value", "accepted"), [(None, True), (NOW + 1, True), (NOW, False), (NOW - 1, False), (0, False)]
    )
    def test_in_future(self, value: int | None, accepted: bool) -> None:
        """An expire_time is after now: at that instant itself the key has expired."""
        assert broken(lambda check: check.in_future("expire_time", value, NOW)) == ([] if accepted else ["expire_time"])


class TestRotation:
    """A key's rotation schedule."""

    @pytest.mark.parametrize(
        ("interval", "kept"), [(None, 0), (HOUR, HOUR), (DAY, DAY), (MAX_ROTATION_INTERVAL, MAX_ROTATION_INTERVAL)]
    )
    def test_accepted(self, interval: int | None, kept: int) -> None:
        """An interval is at least the server's minimum, or left out."""
        assert returned(lambda check: check.rotation("rotation", interval, HOUR)) == kept

    @pytest.mark.parametrize("interval", [HOUR - 1, 0, -1, MAX_ROTATION_INTERVAL + 1])
    def test_refused(self, interval: int) -> None:
        """An interval below the minimum or above the maximum is refused."""
        assert broken(lambda check: check.rotation("rotation", interval, HOUR)) == ["rotation.interval"]

    def test_webhook(self) -> None:
        """A refused URL is reported as a violation of its field; an empty URL is not judged."""
        url = "https://example.com"
        assert broken(lambda check: check.webhook("rotation.webhook_url", url, lambda _: "must not be so")) == [
            "rotation.webhook_url"
        ]
        assert returned(lambda check: check.webhook("rotation.webhook_url", url, lambda _: "")) == url
        assert returned(lambda check: check.webhook("rotation.webhook_url", "", lambda _: "must not be so")) == ""


class TestCheck:
    """The violations of a whole request."""

    def test_all_together(self) -> None:
        """One error lists all violations."""

        def rules(check: Validation) -> None:
            check.name("name", "a")
            check.granted_scopes("scopes", ["ok", "not ok"])
            check.ttl("ttl", 0)

        assert broken(rules) == ["name", "scopes[1]", "ttl"]

    def test_nothing_wrong(self) -> None:
        """A check without violations raises nothing."""
        Validation().done()

    @pytest.mark.parametrize(
        "rule",
        [
            lambda check, pasted: check.key_id("key_id", pasted),
            lambda check, pasted: check.project("project_id", pasted + " "),
            lambda check, pasted: check.filter("environment_id", pasted + " "),
            lambda check, pasted: check.name("name", pasted * 99),
            lambda check, pasted: check.text("owner_id", pasted * 99, 255),
            lambda check, pasted: check.prefix("prefix", pasted, "tmb"),
            lambda check, pasted: check.granted_scopes("scopes", [pasted + " "]),
            lambda check, pasted: check.required_scopes("required_scopes", [pasted + " "]),
            lambda check, pasted: check.metadata("metadata", {pasted: ""}),
            lambda check, pasted: check.metadata("metadata", {"team": pasted * 99}),
            lambda check, pasted: check.cidrs("allowed_cidrs", [pasted]),
            lambda check, pasted: check.address("client_ip", pasted),
            lambda check, pasted: check.request_id("request_id", pasted),
            lambda check, pasted: check.webhook("webhook_url", pasted, lambda _: "must be https"),
        ],
        ids=[
            "key_id", "project", "filter", "name", "text", "prefix", "granted_scopes", "required_scopes",
            "a key of metadata", "a value of metadata", "cidrs", "address", "request_id", "rotation",
        ],
    )  # fmt: skip
    def test_no_value_is_quoted(self, rule: Callable[[Validation, str], object]) -> None:
        """A key that was pasted into any field is refused, and no part of it appears in the error."""
        pasted = "tmb_" + string.ascii_letters[:16] + "_" + string.ascii_letters[:49]
        check = Validation()
        rule(check, pasted)
        with pytest.raises(InvalidFields) as refused:
            check.done()
        told = str(refused.value) + repr(refused.value.violations) + repr(refused.value.detail)
        assert string.ascii_letters[:10] not in told
