"""Which URLs a webhook may go to, and which addresses: the public internet by https, and what an operator opens.

A URL is judged twice: by its form, and by every address that its name has at that moment. Whoever sends must dial one
of the addresses that were judged, since a name may lead elsewhere a moment later.
"""

import contextlib
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime  # Python 3.10 has it apart from the built-in one
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

LONGEST = 2_048
"""Characters of a URL."""

LONGEST_NAME = 253
"""Characters of a DNS name (RFC 1035, section 2.3.4, in text)."""

Network = IPv4Network | IPv6Network

LookUp = Callable[[str], Iterable[str]]
"""Gives the addresses of a name as text; an ``OSError`` says that there are none."""

# From IANA's registries of special-purpose addresses, and what nobody outside receives webhooks at. Written out,
# since Python's own tables differ from version to version, and count much that leads inside as global.
_SPECIAL_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32", # by its number public, but in Azure the host that a machine runs on
    )
)  # fmt: skip

_PUBLIC_6 = IPv6Network("2000::/3")
"""All that is assigned to the public internet; mapped, compatible and NAT64 addresses lie outside."""

_SPECIAL_6 = tuple(
    IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20")
)

_LOOPBACK = (IPv4Address("127.0.0.1"), IPv6Address("::1"))

_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?]+)(?P<path>/[^?]*)?(?P<query>\?.*)?")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[1-9][0-9]{0,4}))?")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x.*")

_INSIDE = "must not lead to a private or special network"
_NO_HOST = "must have a DNS name or an IP address in its usual form as its host"


class Refused(Exception):
    """A webhook must not go there. The text is the broken rule, in our words: it quotes nothing of the URL."""


class Unresolvable(Exception):
    """The name has no address now, or none that was found in time."""


@dataclass(frozen=True)
class Rules:
    """What an operator lets webhooks reach, beyond the public internet by https.

    ``loopback`` opens 127.0.0.1 and ::1, and ``localhost`` where it is nothing else, for https and http. ``networks``
    opens these addresses for https; an IPv4 network opens no IPv6 address that holds one of its own. Where ``hosts`` is
    set, nothing but these hosts is reached: ``hooks.example.com``, or ``*.example.com`` for whatever is below it.
    ``proxied`` says that a proxy resolves names: then names are not judged by their addresses here.
    """

    loopback: bool = False
    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    proxied: bool = False


@dataclass(frozen=True)
class Target:
    """A URL taken apart. ``host`` is in lower case, without brackets or a dot at its end; ``path`` has the query.

    The path is not shown: many receivers' URLs have their secret in it.
    """

    scheme: str
    host: str
    port: int
    path: str = field(repr=False)

    @property
    def local(self) -> bool:
        """Tell whether the host is this machine, by one of the three ways to write so."""
        return self.host in ("localhost", *map(str, _LOOPBACK))

    @property
    def literal(self) -> bool:
        """Tell whether the host is an address, not a name."""
        return ":" in self.host or _NUMBER.fullmatch(self.host.rpartition(".")[2]) is not None

    @property
    def bracketed(self) -> str:
        """The host as it stands in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host


def parse(url: str, rules: Rules) -> Target:
    """Take a URL apart. Raises ``Refused`` unless all that can be told without looking up its name is permitted.

    What different programs read differently is refused, not interpreted: a user name, a backslash, 0x7f.1.
    """
    if len(url) > LONGEST:
        raise Refused(f"must be at most {LONGEST:,} characters")
    if not url.isascii():
        raise Refused("must be ASCII: a name is written in its xn-- form, all else as %XX")
    if "#" in url:
        raise Refused("must have no fragment")
    if not _CHARACTERS.fullmatch(url):
        raise Refused("must have no character but those of RFC 3986: others are written as %XX")
    parts = _URL.fullmatch(url)
    if not parts:
        raise Refused("must be a URL like https://hooks.example.com/path")
    if "@" in parts["authority"]:
        raise Refused("must have no user name or password")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if not authority:
        raise Refused(f"{_NO_HOST}, and after it at most a port from 1 to 65535")
    scheme = parts["scheme"].lower()
    port = int(authority["port"] or {"http": 80}.get(scheme, 443))
    if port > 65_535:
        raise Refused("must have a port from 1 to 65535, or none")
    target = Target(scheme, _host(authority["host"]), port, (parts["path"] or "/") + (parts["query"] or ""))
    if scheme != "https" and not (scheme == "http" and target.local and rules.loopback):
        raise Refused("must be https")
    if rules.hosts and not any(_fits(target.host, pattern) for pattern in rules.hosts):
        raise Refused("must have a host that this server's operator allows")
    if target.literal:
        _demand([target.host], target, rules)
    elif _fits(target.host, "*.localhost") or (target.host == "localhost" and not rules.loopback):
        raise Refused(_INSIDE)  # behind a proxy nobody else would say so
    return target


def permitted(address: str, target: Target, rules: Rules) -> bool:
    """Tell whether one of a target's addresses, a literal as ``getaddrinfo`` gives it, may be dialled."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if "%" in address:
        return False  # a scope is some link of this machine's
    if rules.loopback and target.local and ip in _LOOPBACK:
        return True
    if target.scheme != "https" or target.host == "localhost":
        return False
    return any(ip in network for network in rules.networks) or not _special(ip)


def by_proxy(target: Target, rules: Rules) -> bool:
    """Tell whether the operator's proxy is to reach a target. What is local to this machine is not local to a proxy."""
    return rules.proxied and not target.local


class Resolver:
    """Looks names up, at most ``most`` at a time. A look-up cannot be given up; whoever waits for it can.

    Each has a thread that does not keep the process alive: an executor's would, until the system's resolver gives up.
    """

    def __init__(self, look_up: LookUp | None = None, most: int = 32) -> None:
        self._look_up = look_up or _system_look_up
        self._free = threading.BoundedSemaphore(most)
        self._closed = False

    def addresses(self, target: Target, rules: Rules, timeout: float) -> list[str]:
        """Return all addresses of a target, in the order to try them; each is permitted.

        Raises ``Refused`` where one is not, and ``Unresolvable`` where there is none after ``timeout`` seconds.
        """
        found = [target.host] if target.literal else self.unjudged(target.host, timeout)
        _demand(found, target, rules)
        return found

    def unjudged(self, name: str, timeout: float) -> list[str]:
        """Return all addresses of a name that the operator chose, whatever they are. Raises ``Unresolvable``."""
        end = time.monotonic() + timeout
        if self._closed or not self._free.acquire(timeout=max(timeout, 0)):
            raise Unresolvable
        answer: Future[list[str]] = Future()
        try:
            threading.Thread(target=self._answer, args=(name, answer), name="webhook-resolver", daemon=True).start()
        except RuntimeError:  # no more threads
            self._free.release()
            raise Unresolvable from None
        try:
            found = answer.result(max(end - time.monotonic(), 0))
        except (OSError, NotInTime):
            raise Unresolvable from None
        if not found:
            raise Unresolvable
        return found

    def close(self) -> None:
        """Look nothing up any more. Look-ups that hang are left to end by themselves."""
        self._closed = True

    def _answer(self, name: str, answer: "Future[list[str]]") -> None:
        try:
            answer.set_result(list(dict.fromkeys(self._look_up(name))))
        except Exception as failure:
            answer.set_exception(failure)
        finally:
            self._free.release()


def check(url: str, rules: Rules, resolver: Resolver, timeout: float) -> None:
    """Judge a URL before it is kept. Raises ``Refused``. A name that has no address now is judged when it has one."""
    target = parse(url, rules)
    if by_proxy(target, rules):
        return
    with contextlib.suppress(Unresolvable):
        resolver.addresses(target, rules, timeout)


def _host(text: str) -> str:
    host = text.lower().removesuffix(".")
    try:
        if host.startswith("["):
            return str(IPv6Address(host[1:-1]))
        # Many programs read 2130706433, 0177.1 and 0x7f.1 as 127.0.0.1: a number is four decimal ones or nothing.
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host))
    except ValueError:
        raise Refused(_NO_HOST) from None
    if len(host) > LONGEST_NAME or not _NAME.fullmatch(host):
        raise Refused(_NO_HOST)
    return host


def _fits(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:].lower())
    return host == pattern.lower()


def _demand(addresses: Iterable[str], target: Target, rules: Rules) -> None:
    # One address that is not permitted refuses them all: a receiver has no reason to have such a one among others.
    if not all(permitted(address, target, rules) for address in addresses):
        raise Refused(_INSIDE)


def _special(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv4Address):
        return any(ip in network for network in _SPECIAL_4)
    if ip not in _PUBLIC_6 or any(ip in network for network in _SPECIAL_6):
        return True
    # ISATAP, below any prefix: the last half is ::0:5efe and an IPv4 address (RFC 5214, section 6.1).
    return int(ip) >> 32 & 0xFDFF_FFFF == 0x0000_5EFE


def _system_look_up(name: str) -> Iterable[str]:
    # As bytes the name is taken as it stands, and not encoded once more.
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
