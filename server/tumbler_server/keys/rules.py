"""Validation of request fields. Each rule is stated here once, in code and in words.

A ``Validation`` collects all violations, so a caller sees them in one response. A violation never quotes the value: it
may be a secret pasted into the wrong field.
"""

import enum
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from tumbler import decide, keyformat
from tumbler_server.clock import DAY
from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.keys import record
from tumbler_server.keys.record import Key, OldKeyEnds
from tumbler_server.limits import ENTRIES, ENTRY_LENGTHS, LENGTHS, METADATA_KEY_LENGTH, PAGE_ENTRIES, RECORD_BYTES

DEFAULT_NAME = "default"
DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = PAGE_ENTRIES.most
MAX_SCOPES = ENTRIES["scopes"]
MAX_CIDRS = ENTRIES["allowed_cidrs"]
MAX_TTL = 36_500 * DAY
MAX_ROTATION_INTERVAL = 3_650 * DAY
MAX_GRACE = 30 * DAY

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_TENANT_RULE = "must be 1-128 of the characters A-Z a-z 0-9 . _ : / @ + -, beginning with a letter or digit"
_SEGMENTS = r"[A-Za-z0-9._/-]+(?::[A-Za-z0-9._/-]+)*"
_REQUIRED_SCOPE = re.compile(_SEGMENTS)
_GRANTED_SCOPE = re.compile(rf"\*|{_SEGMENTS}(?::\*)?")
_KEY_ID = re.compile(r"[0-9A-Za-z]{16}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# Unicode's categories Cc, Cs, Zl and Zp. A pattern is ten times as fast as looking up each character's category.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_CONTROLS_IN_A_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")


def is_scope(text: str) -> bool:
    """Return whether ``text`` is valid as a key's scope."""
    return len(text) <= ENTRY_LENGTHS["scopes"] and _GRANTED_SCOPE.fullmatch(text) is not None


class Validation:
    """Collects violations. ``done`` raises them together."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def fail(self, field: str, rule: str) -> None:
        """Add a violation of a rule by a field."""
        self._violations.append(Violation(field, rule))

    def done(self) -> None:
        """Raise ``InvalidFields`` if there is any violation."""
        if self._violations:
            raise InvalidFields(self._violations)

    def key_id(self, field: str, value: str) -> str:
        """Check the format of a key id."""
        if not _KEY_ID.fullmatch(value):
            self.fail(field, "must be the id of a key: 16 of the characters 0-9 A-Z a-z (not the key itself)")
        return value

    def project(self, field: str, value: str) -> str:
        """Check a required project id."""
        if not value:
            self.fail(field, "is required")
        return self.filter(field, value)

    def filter(self, field: str, value: str) -> str:
        """Check an optional project or environment id."""
        if value and not _TENANT.fullmatch(value):
            self.fail(field, _TENANT_RULE)
        return value

    def name(self, field: str, value: str) -> str:
        """Check an optional key name, and return it or the default."""
        if not value:
            return DEFAULT_NAME
        if not 3 <= len(value) <= LENGTHS["name"] or not value.strip() or _CONTROLS.search(value):
            self.fail(field, "must be 3-255 characters, not all blank, without control characters")
        return value

    def text(self, field: str, value: str, most: int) -> str:
        """Check an optional string of at most ``most`` characters."""
        if len(value) > most or _CONTROLS.search(value):
            self.fail(field, f"must be at most {most:,} characters, without control characters")
        return value

    def prefix(self, field: str, value: str, default: str) -> str:
        """Check an optional key prefix, and return it or the default."""
        if value and not keyformat.valid_prefix(value):
            self.fail(field, "must match [a-z][a-z0-9]{1,15}(_[a-z0-9]{1,15})?")
        return value or default

    def granted_scopes(self, field: str, values: Iterable[str]) -> tuple[str, ...]:
        """Check the scopes to grant to a key, and return them without duplicates."""
        rule = "must be `*`, or segments of A-Z a-z 0-9 . _ / - joined by `:`, of which the last may be `*`"
        return self._scopes(field, values, _GRANTED_SCOPE, rule)

    def required_scopes(self, field: str, values: Iterable[str]) -> tuple[str, ...]:
        """Check the scopes that a verification requires, and return them without duplicates."""
        rule = "must be segments of A-Z a-z 0-9 . _ / - joined by `:`, without wildcards"
        return self._scopes(field, values, _REQUIRED_SCOPE, rule)

    def metadata(self, field: str, values: Mapping[str, str]) -> dict[str, str]:
        """Check a key's metadata."""
        if len(values) > ENTRIES["metadata"]:
            self.fail(field, f"must hold at most {ENTRIES['metadata']} pairs")
            return {}
        for number, (name, value) in enumerate(sorted(values.items())):
            # An invalid name may be anything, such as a secret, so the violation gives its position instead.
            if not 1 <= len(name) <= METADATA_KEY_LENGTH or _CONTROLS.search(name):
                self.fail(f"{field}[{number}]", "must have a key of 1-64 characters, without control characters")
            elif len(value) > ENTRY_LENGTHS["metadata"] or _CONTROLS_IN_A_TEXT.search(value):
                self.fail(
                    f"{field}[{name!r}]",
                    "must have a value of at most 1,024 characters, without control characters but tab and newline",
                )
        return dict(values)

    def cidrs(self, field: str, values: Sequence[str]) -> tuple[str, ...]:
        """Check networks, and return them in canonical form without duplicates."""
        networks: list[str] = []
        if len(values) > MAX_CIDRS:
            self.fail(field, f"must hold at most {MAX_CIDRS}")
            return ()
        for number, value in enumerate(values):
            try:
                # Zones (`fe80::1%eth0`) and masks (`/255.0.0.0`) mean different things elsewhere.
                if len(value) > ENTRY_LENGTHS["allowed_cidrs"] or not re.fullmatch(
                    r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?", value
                ):
                    raise ValueError
                network = decide.parse_network(value)
                if network.version == 6 and network.network_address.ipv4_mapped:
                    raise ValueError
                networks.append(str(network))
            except ValueError:
                self.fail(
                    f"{field}[{number}]",
                    "must be an IPv4 or IPv6 network without host bits, such as 192.0.2.0/24 or 2001:db8::/32",
                )
        return tuple(dict.fromkeys(networks))

    def address(self, field: str, value: str) -> str:
        """Check an optional IP address."""
        if value and (len(value) > LENGTHS["client_ip"] or decide.parse_address(value) is None):
            self.fail(field, "must be an IPv4 or IPv6 address")
        return value

    def named(self, field: str, values: Iterable[int], known: type[enum.IntEnum]) -> None:
        """Check enum numbers. The wire can carry any number."""
        for number, value in enumerate(values):
            if value not in {int(each) for each in known}:
                self.fail(f"{field}[{number}]", f"must be one of the named {field}")

    def page_size(self, field: str, value: int) -> int:
        """Check a page size, and return the effective one: 20 by default, at most 1,000."""
        if value < 0:
            self.fail(field, "must not be negative")
        return min(value or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)

    def request_id(self, field: str, value: str) -> str:
        """Check an optional request id, and return it in lower case."""
        if value and not _UUID.fullmatch(value):
            self.fail(field, "must be a UUID, such as 123e4567-e89b-42d3-a456-426614174000")
        return value.lower()

    def ttl(self, field: str, value: int | None) -> int | None:
        """Check an optional lifetime in microseconds."""
        if value is not None and not 0 < value <= MAX_TTL:
            self.fail(field, "must be more than 0 and at most 36,500 days")
        return value

    def in_future(self, field: str, value: int | None, now: int) -> int | None:
        """Check that an optional time is in the future."""
        if value is not None and value <= now:
            self.fail(field, "must be in the future")
        return value

    def grace(self, grace: int, ends: int) -> OldKeyEnds:
        """Check a rotated key's grace period and how it ends, and return how it ends."""
        if ends not in (0, *OldKeyEnds):
            self.fail("old_key_ends", "must be OLD_KEY_ENDS_AT_GRACE_END or OLD_KEY_ENDS_ON_FIRST_USE")
        ends_on_first_use = ends == OldKeyEnds.ON_FIRST_USE
        if not 0 <= grace <= MAX_GRACE:
            self.fail("grace_period", "must be between 0 and 30 days")
        elif ends_on_first_use and not grace:
            self.fail(
                "grace_period", "must be more than 0 with OLD_KEY_ENDS_ON_FIRST_USE: the old key works until that use"
            )
        return OldKeyEnds.ON_FIRST_USE if ends_on_first_use else OldKeyEnds.AT_GRACE_END

    def rotation(self, field: str, interval: int | None, least: int) -> int:
        """Check an optional rotation interval, and return it, or 0 if there is none."""
        if interval is not None and not least <= interval <= MAX_ROTATION_INTERVAL:
            self.fail(f"{field}.interval", f"must be between {least // 1_000_000} seconds and 3,650 days")
        return interval or 0

    def record(self, path: str, key: Key) -> None:
        """Check the size of a key's record. The violation names the largest field, prefixed with ``path``."""
        if (size := record.weight(key)) > RECORD_BYTES.most:
            parts = record.chosen(key)
            largest = max(parts, key=lambda field: parts[field])
            self.fail(
                f"{path}{largest}",
                f"the record has {size:,} bytes as sent, of which {largest} takes {parts[largest]:,}; "
                f"at most {RECORD_BYTES.most:,}",
            )

    def webhook(self, field: str, value: str, judge: Callable[[str], str]) -> str:
        """Check an optional webhook URL. ``judge`` returns the broken rule, or an empty string."""
        if value and (rule := judge(value)):
            self.fail(field, rule)
        return value

    def _scopes(self, field: str, values: Iterable[str], form: re.Pattern[str], rule: str) -> tuple[str, ...]:
        values = tuple(values)
        scopes = tuple(dict.fromkeys(values))
        if len(scopes) > MAX_SCOPES:
            self.fail(field, f"must hold at most {MAX_SCOPES}")
        for number, scope in enumerate(values):
            if len(scope) > ENTRY_LENGTHS["scopes"] or not form.fullmatch(scope):
                self.fail(f"{field}[{number}]", f"{rule}; at most 128 characters")
                if number > MAX_SCOPES:
                    break
        return scopes
