"""What makes a key stronger than it was, and who may do that (docs/contract.md, "Callers").

Narrowing is free: a caller who may stop a key need not hold its scopes.
"""

import ipaddress

from tumbler.decide import any_grants
from tumbler_server.clock import NEVER
from tumbler_server.errors import SelfWidening
from tumbler_server.keys import access
from tumbler_server.keys.record import Key
from tumbler_server.store.database import Read

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


_LONGEST = 1_000
"""Keys of a line that are looked at. One that is rotated each hour has fewer within the longest grace of 30 days."""

_LINE = (
    "WITH RECURSIVE line (id, place) AS (SELECT replaced_by_key_id, 1 FROM api_key WHERE id = ? UNION ALL "  # noqa: S608
    "SELECT k.replaced_by_key_id, l.place + 1 FROM line l JOIN api_key k ON k.id = l.id "
    f"WHERE l.place < {_LONGEST}) SELECT id FROM line WHERE id <> ''"
)
"""The keys that came after one, by rotation."""


def let(caller: Key, before: Key, after: Key, read: Read) -> None:
    """Let a caller make a change, unless it widens a key that may do more to this service than the caller, or itself.

    Raises ``ScopeEscalation`` and ``SelfWidening``.
    """
    if not widens(before, after):
        return
    access.hand_out(caller, after.scopes)
    if same(read, caller.id, before.id):
        raise SelfWidening(before.id)


def same(read: Read, one: str, other: str) -> bool:
    """Say whether two keys are one and the same to this rule: a key, and those that it was rotated to.

    For as long as a grace lasts both may call. Lines too long to be read count as the same.
    """
    return one == other or _comes_to(read, one, other) or _comes_to(read, other, one)


def _comes_to(read: Read, one: str, other: str) -> bool:
    line = [key_id for (key_id,) in read(_LINE, (one,))]
    return other in line or len(line) == _LONGEST


def widens(before: Key, after: Key) -> bool:
    """Say whether the key can do anything after a change that it could not before, or tell anybody more."""
    return (
        after.expire_time > before.expire_time
        or (after.active and not before.active)
        or not all(any_grants(before.scopes, scope) for scope in after.scopes)
        or not _within(after.allowed_cidrs, before.allowed_cidrs)
        or (bool(after.webhook_url) and after.webhook_url != before.webhook_url)
        or 0 < after.rotation_interval < (before.rotation_interval or NEVER)  # a claim gives a whole new life
    )


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    """Say whether every address of ``inner`` is in one network of ``outer``; an empty list is every address.

    Networks that only together cover one of ``inner`` do not count: such a change asks for more than it had to.
    """
    if not outer:
        return True
    networks = [ipaddress.ip_network(each) for each in outer]
    return bool(inner) and all(_in_one(ipaddress.ip_network(each), networks) for each in inner)


def _in_one(network: _Network, networks: list[_Network]) -> bool:
    return any(
        network.version == each.version and network.subnet_of(each)  # type: ignore[arg-type]
        for each in networks
    )
