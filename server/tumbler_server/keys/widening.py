"""Changes that widen a key's power, and who may make them (docs/contract.md, "Callers").

Narrowing is unrestricted: a caller that may stop a key need not hold its scopes.
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
"""Most keys of a rotation chain to read. A key rotated hourly has fewer within the longest grace period, 30 days."""

_LINE = (
    "WITH RECURSIVE line (id, place) AS (SELECT replaced_by_key_id, 1 FROM api_key WHERE id = ? UNION ALL "  # noqa: S608
    "SELECT k.replaced_by_key_id, l.place + 1 FROM line l JOIN api_key k ON k.id = l.id "
    f"WHERE l.place < {_LONGEST}) SELECT id FROM line WHERE id <> ''"
)
"""The ids of a key's successors by rotation."""


def let(caller: Key, before: Key, after: Key, read: Read) -> None:
    """Check that a caller may make a change.

    Raises ``ScopeEscalation`` if the change widens a key that has permissions on this service that the caller lacks,
    and ``SelfWidening`` if it widens the caller's own key (see ``same``).
    """
    if not widens(before, after):
        return
    access.hand_out(caller, after.scopes)
    if same(read, caller.id, before.id):
        raise SelfWidening(before.id)


def same(read: Read, one: str, other: str) -> bool:
    """Return whether two keys count as the same for this rule: a key and its successors by rotation.

    Both may call during a grace period. Keys whose chain is too long to read count as the same.
    """
    return one == other or _comes_to(read, one, other) or _comes_to(read, other, one)


def _comes_to(read: Read, one: str, other: str) -> bool:
    line = [key_id for (key_id,) in read(_LINE, (one,))]
    return other in line or len(line) == _LONGEST


def widens(before: Key, after: Key) -> bool:
    """Return whether a change lets the key do anything new, or sends its notices to a new URL."""
    return (
        after.expire_time > before.expire_time
        or (after.active and not before.active)
        or not all(any_grants(before.scopes, scope) for scope in after.scopes)
        or not _within(after.allowed_cidrs, before.allowed_cidrs)
        or (bool(after.webhook_url) and after.webhook_url != before.webhook_url)
        or 0 < after.rotation_interval < (before.rotation_interval or NEVER)  # a claim starts a full new lifetime
    )


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    """Return whether each network of ``inner`` lies in one network of ``outer``. An empty list means every address.

    A network covered only by several networks of ``outer`` together does not count as within.
    """
    if not outer:
        return True
    networks = [ipaddress.ip_network(each) for each in outer]
    return bool(inner) and all(_in_one(ipaddress.ip_network(each), networks) for each in inner)


def _in_one(network: _Network, networks: list[_Network]) -> bool:
    return any(
        network.version == each.version and network.subnet_of(each)  # type: ignore[arg-type]  # both have one version
        for each in networks
    )
