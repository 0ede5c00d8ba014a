"""The verdict: may this key do this now? The server and the client share these rules (docs/contract.md, "Verdicts").

The clients in other languages have the same function, and ``tests/vectors/verify.json`` tests them all.
"""

import enum
import functools
import ipaddress
from collections.abc import Collection, Iterable
from typing import NamedTuple, Protocol

__all__ = [
    "RESERVED",
    "Address",
    "Code",
    "Demand",
    "Record",
    "any_grants",
    "decide",
    "grants",
    "parse_address",
    "parse_network",
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

RESERVED = "tumbler:"
"""The prefix of scopes that are permissions on the service itself. ``*`` does not grant them."""


class Code(enum.IntEnum):
    """The outcome of a verification, with the numbers of the proto. Only VALID allows anything."""

    UNSPECIFIED = 0
    """The server denied with a code that this version does not know. `decide` never returns it."""
    VALID = 1
    MALFORMED = 2
    NOT_FOUND = 3
    REVOKED = 4
    SUPERSEDED = 5
    INACTIVE = 6
    EXPIRED = 7
    ENVIRONMENT_MISMATCH = 8
    IP_NOT_ALLOWED = 9
    INSUFFICIENT_SCOPE = 10


class Record(Protocol):
    """What `decide` needs to know of a key. Times are microseconds. A time that never comes is later than any other."""

    @property
    def project_id(self) -> str: ...  # noqa: D102 - named as in the protos, as are all that follow

    @property
    def environment_id(self) -> str: ...  # noqa: D102

    @property
    def scopes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def allowed_cidrs(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def active(self) -> bool: ...  # noqa: D102

    @property
    def revoked(self) -> bool: ...  # noqa: D102

    @property
    def expire_time(self) -> int: ...  # noqa: D102

    @property
    def grace_expire_time(self) -> int: ...  # noqa: D102


class Demand(NamedTuple):
    """What a key must satisfy. No project ids, or an empty environment: any. Several ids: the key belongs to one."""

    project_ids: tuple[str, ...] = ()
    environment_id: str = ""
    required_scopes: tuple[str, ...] = ()
    client_ip: str = ""


def decide(key: Record | None, demand: Demand, now: int) -> Code:
    """Return the first reason to deny, in the order of the contract's table, or VALID if there is none.

    ``key`` is None if the presented text proves no key. Pure: no I/O, no clock of its own.
    """
    if key is None or (demand.project_ids and key.project_id not in demand.project_ids):
        return Code.NOT_FOUND
    if key.revoked:
        return Code.REVOKED
    if now >= key.grace_expire_time:
        return Code.SUPERSEDED
    if not key.active:
        return Code.INACTIVE
    if now >= key.expire_time:
        return Code.EXPIRED
    if demand.environment_id and key.environment_id != demand.environment_id:
        return Code.ENVIRONMENT_MISMATCH
    if key.allowed_cidrs and not _within(key.allowed_cidrs, demand.client_ip):
        return Code.IP_NOT_ALLOWED
    required, held = demand.required_scopes, key.scopes
    if len(required) == 1 and required[0] in held:  # the common case
        return Code.VALID
    if required:
        granted = frozenset(held)
        if not all(any_grants(granted, scope) for scope in required):
            return Code.INSUFFICIENT_SCOPE
    return Code.VALID


def grants(granted: str, required: str) -> bool:
    """Return whether ``granted`` covers ``required``.

    A required wildcard is covered by itself and by any wider wildcard.
    """
    if granted == required:
        return True
    if granted == "*":
        return not required.startswith(RESERVED)
    return granted.endswith(":*") and required.startswith(granted[:-1])


def any_grants(granted: Collection[str], required: str) -> bool:
    """Return whether one of ``granted`` covers ``required``. An empty collection covers nothing.

    The cost is one look-up for each part of ``required``, however many scopes are granted, if ``granted`` is a set.
    """
    if required in granted or ("*" in granted and grants("*", required)):
        return True
    end = required.find(":")
    while end >= 0:
        if required[: end + 1] + "*" in granted:
            return True
        end = required.find(":", end + 1)
    return False


def parse_address(text: str) -> Address | None:
    """Return the address that ``text`` names, or None if it names none.

    An IPv4-mapped IPv6 address is returned as IPv4. An address with a zone (``fe80::1%eth0``) means something else on
    every machine, so it names none.
    """
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@functools.lru_cache(maxsize=10_000)
def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return the network that ``text`` names. Raises ValueError if it names none, or has host bits set."""
    return ipaddress.ip_network(text)


def _within(cidrs: Iterable[str], client_ip: str) -> bool:
    address = parse_address(client_ip)
    return address is not None and any(_contains(cidr, address) for cidr in cidrs)


def _contains(cidr: str, address: Address) -> bool:
    try:
        return address in parse_network(cidr)
    except ValueError:  # from a server whose version knows other forms; it contains no address
        return False
