"""The URLs and addresses that a webhook may go to: the public internet by https, and what an operator opens.

A URL is judged twice: by its form, and by every address that its name has at that moment. The sender must dial one of
the judged addresses, since the name may resolve to another one a moment later.
"""

import contextlib
import ipaddress
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime  # Python 3.10 has it apart from the built-in one
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from tumbler_server import clock as clocks
from tumbler_server.clock import SECOND, Clock
from tumbler_server.errors import Overloaded, own
from tumbler_server.limits import WEBHOOK_LOOK_UPS
from tumbler_server.webhooks.fairness import has_room

LONGEST = 2_048
"""Most characters of a URL."""

LONGEST_NAME = 253
"""Most characters of a DNS name (RFC 1035, section 2.3.4, as text)."""

JUDGING = 1.0
"""Seconds for the look-up of a host when a URL is set. The URL is judged again at each attempt to send to it."""

_MOST_OF_PROJECT = 4
"""Look-ups in flight for one project."""

REMEMBERED = 10 * SECOND
"""How long a name that did not resolve in time is not looked up again when a URL is set."""

MOST_REMEMBERED = 1_024
"""Names that are remembered as unresolvable. The next one evicts the oldest."""

Network = IPv4Network | IPv6Network

LookUp = Callable[[str], Iterable[str]]
"""Returns the addresses of a name as text. Raises ``OSError`` if there are none."""

# From IANA's registries of special-purpose addresses, plus networks in which no outsider receives webhooks. Written
# out, since Python's own tables differ between versions, and count much that leads inside as global.
_SPECIAL_4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32", # a public address, but in Azure the host that a virtual machine runs on
    )
)  # fmt: skip

_PUBLIC_6 = IPv6Network("2000::/3")
"""The addresses for the public internet. Mapped, compatible and NAT64 addresses lie outside."""

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
    """A webhook must not go there. The text states the broken rule, and quotes nothing of the URL."""


class Unresolvable(Exception):
    """The name has no address now, or none was found in time."""


@dataclass(frozen=True)
class TargetRules:
    """The targets that an operator lets webhooks reach, beyond the public internet by https.

    ``loopback`` opens 127.0.0.1 and ::1, and ``localhost`` if it resolves only to these, for https and http.
    ``networks`` opens these addresses for https. An IPv4 network does not open IPv6 addresses that embed its addresses.
    If ``hosts`` is set, only these hosts are reached: ``hooks.example.com``, or ``*.example.com`` for all names below
    it. ``proxied`` means that a proxy resolves names, so names are not judged by their addresses here.
    """

    loopback: bool = False
    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()
    proxied: bool = False


@dataclass(frozen=True)
class Target:
    """A parsed URL. ``host`` is in lower case, without brackets or a final dot. ``path`` includes the query.

    The path is not shown: many receivers' URLs contain a secret in it.
    """

    scheme: str
    host: str
    port: int
    path: str = field(repr=False)

    @property
    def local(self) -> bool:
        """Whether the host is this machine, in one of its three notations."""
        return self.host in ("localhost", *map(str, _LOOPBACK))

    @property
    def literal(self) -> bool:
        """Whether the host is an address, not a name."""
        return ":" in self.host or _NUMBER.fullmatch(self.host.rpartition(".")[2]) is not None

    @property
    def bracketed(self) -> str:
        """The host as it is written in a URL."""
        return f"[{self.host}]" if ":" in self.host else self.host


def parse(url: str, rules: TargetRules) -> Target:
    """Parse a URL. Raises ``Refused`` unless it passes every rule that needs no look-up of its name.

    Notations that programs read differently are refused, not interpreted: a user name, a backslash, 0x7f.1.
    """
    if len(url) > LONGEST:
        raise Refused(f"must be at most {LONGEST:,} characters")
    if not url.isascii():
        raise Refused("must be ASCII: write a name in its xn-- form, everything else as %XX")
    if "#" in url:
        raise Refused("must have no fragment")
    if not _CHARACTERS.fullmatch(url):
        raise Refused("must have only characters of RFC 3986: write others as %XX")
    parts = _URL.fullmatch(url)
    if not parts:
        raise Refused("must be a URL like https://hooks.example.com/path")
    if "@" in parts["authority"]:
        raise Refused("must have no user name or password")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if not authority:
        raise Refused(f"{_NO_HOST}, optionally followed by a port from 1 to 65535")
    scheme = parts["scheme"].lower()
    port = int(authority["port"] or {"http": 80}.get(scheme, 443))
    if port > 65_535:
        raise Refused("must have no port, or one from 1 to 65535")
    target = Target(scheme, _host(authority["host"]), port, (parts["path"] or "/") + (parts["query"] or ""))
    if scheme != "https" and not (scheme == "http" and target.local and rules.loopback):
        raise Refused("must be https")
    if rules.hosts and not any(_fits(target.host, pattern) for pattern in rules.hosts):
        raise Refused("must have a host that this server's operator allows")
    if target.literal:
        _demand([target.host], target, rules)
    elif _fits(target.host, "*.localhost") or (target.host == "localhost" and not rules.loopback):
        raise Refused(_INSIDE)  # with a proxy, no later check would refuse it
    return target


def permitted(address: str, target: Target, rules: TargetRules) -> bool:
    """Return whether an address of a target, a literal as ``getaddrinfo`` returns it, may be dialled."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if "%" in address:
        return False  # a scope names a link of this machine
    if rules.loopback and target.local and ip in _LOOPBACK:
        return True
    if target.scheme != "https" or target.host == "localhost":
        return False
    return any(ip in network for network in rules.networks) or not _special(ip)


def by_proxy(target: Target, rules: TargetRules) -> bool:
    """Return whether to reach a target by the operator's proxy. This machine's local targets are not local to it."""
    return rules.proxied and not target.local


class Resolver:
    """A resolver of names, with at most ``most`` look-ups in flight, and at most four for one project (``shares``).

    A look-up cannot be cancelled, but waiting for it can. Concurrent requests for the same name share one look-up. Each
    look-up has a daemon thread, which does not keep the process alive. An executor's thread would, until the system's
    resolver gives up.
    """

    def __init__(self, look_up: LookUp | None = None, most: int = 32) -> None:
        self._look_up = look_up or _system_look_up
        self._most = most
        self._held: Counter[str] = Counter()  # look-ups in flight, by the project that began them
        self._answers: dict[str, Future[list[str]]] = {}  # their answers, by name
        self._changed = threading.Condition()
        self._closed = False

    def addresses(self, target: Target, rules: TargetRules, timeout: float, project_id: str = "") -> list[str]:
        """Return all addresses of a target, in the order to try them. Each is permitted.

        Raises ``Refused`` if one is not, and ``Unresolvable`` if there is none after ``timeout`` seconds.
        """
        found = [target.host] if target.literal else self.unjudged(target.host, timeout, project_id)
        _demand(found, target, rules)
        return found

    def unjudged(self, name: str, timeout: float, project_id: str = "") -> list[str]:
        """Return all addresses of a name, without judging them. Raises ``Unresolvable``."""
        end = time.monotonic() + timeout
        answer = self._asked(name, project_id, end)
        try:
            failure = answer.exception(max(end - time.monotonic(), 0))
        except NotInTime:
            raise Unresolvable from None
        if failure is not None and not isinstance(failure, OSError):
            raise own(failure)
        if failure is not None or not answer.result():
            raise Unresolvable
        return answer.result()

    def close(self) -> None:
        """Refuse further look-ups. Those that hang are left to end by themselves."""
        self._closed = True
        with self._changed:
            self._changed.notify_all()

    def _asked(self, name: str, project_id: str, end: float) -> "Future[list[str]]":
        """Return the pending answer, once the name is being looked up or there is a place to do it."""

        def ready() -> bool:
            free = self._most - self._held.total()
            mine = self._held[project_id]
            return self._closed or name in self._answers or (mine < _MOST_OF_PROJECT and has_room(mine, free))

        with self._changed:
            if not self._changed.wait_for(ready, max(end - time.monotonic(), 0)) or self._closed:
                raise Unresolvable
            answer = self._answers.get(name)
            if answer is not None:
                return answer
            answer = Future()
            arguments = (name, project_id, answer)
            try:
                threading.Thread(target=self._answer, args=arguments, name="webhook-resolver", daemon=True).start()
            except RuntimeError:  # no more threads
                raise Unresolvable from None
            self._held[project_id] += 1
            self._answers[name] = answer
            return answer

    def _answer(self, name: str, project_id: str, answer: "Future[list[str]]") -> None:
        found, failure = [], None
        try:
            found = list(dict.fromkeys(self._look_up(name)))
        except Exception as raised:
            failure = raised
        # Before the answer is set: later requests must get a newer one.
        with self._changed:
            del self._answers[name]
            self._held[project_id] -= 1
            self._held += Counter()  # forgets projects that hold none
            self._changed.notify_all()
        if failure is None:
            answer.set_result(found)
        else:
            answer.set_exception(failure)


class Judge:
    """Judges a URL when it is set. Each verdict is the broken rule, which quotes nothing of the URL, or empty.

    A name that does not resolve in time passes, since it is judged at each attempt to send to it. ``patience`` is in
    seconds.
    """

    def __init__(
        self, rules: TargetRules, resolver: Resolver, patience: float = JUDGING, monotonic: Clock = clocks.monotonic
    ) -> None:
        self._rules = rules
        self._resolver = resolver
        self._patience = patience
        self._monotonic = monotonic
        self._looking: Counter[str] = Counter()
        self._unresolvable: dict[str, int] = {}  # until when each name is not looked up again, the oldest first
        self._lock = threading.Lock()

    def form(self, url: str) -> str:
        """Judge a URL at once, by every rule that needs no look-up of its name."""
        try:
            parse(url, self._rules)
        except Refused as refused:
            return str(refused)
        return ""

    def look_up(self, url: str, project_id: str) -> str:
        """Judge a URL also by the current addresses of its name, which can take ``patience`` seconds.

        Raises ``Overloaded`` at once if the project has as many other look-ups in progress as it may (two).
        """
        try:
            target = parse(url, self._rules)
            if target.literal or by_proxy(target, self._rules):
                return ""
            with self._place(target.host, project_id) as known:
                if not known:
                    self._resolver.addresses(target, self._rules, self._patience, project_id)
        except Refused as refused:
            return str(refused)
        except Unresolvable:
            self._remember(target.host)
        return ""

    @contextlib.contextmanager
    def _place(self, name: str, project_id: str) -> Iterator[bool]:
        """Take one of the project's places, unless the name is known to be unresolvable. Yield whether it is."""
        with self._lock:
            known = self._monotonic() < self._unresolvable.get(name, 0)
            if not known:
                if self._looking[project_id] >= WEBHOOK_LOOK_UPS.most:
                    raise Overloaded(SECOND)
                self._looking[project_id] += 1
        try:
            yield known
        finally:
            if not known:
                with self._lock:
                    self._looking[project_id] -= 1
                    self._looking += Counter()

    def _remember(self, name: str) -> None:
        with self._lock:
            self._unresolvable.pop(name, None)
            if len(self._unresolvable) == MOST_REMEMBERED:
                del self._unresolvable[next(iter(self._unresolvable))]
            self._unresolvable[name] = self._monotonic() + REMEMBERED


def _host(text: str) -> str:
    host = text.lower().removesuffix(".")
    try:
        if host.startswith("["):
            return str(IPv6Address(host[1:-1]))
        # Many programs read 2130706433, 0177.1 and 0x7f.1 as 127.0.0.1. Accept only four decimal numbers.
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


def _demand(addresses: Iterable[str], target: Target, rules: TargetRules) -> None:
    # One address that is not permitted refuses them all: a receiver has no reason to mix such an address with others.
    if not all(permitted(address, target, rules) for address in addresses):
        raise Refused(_INSIDE)


def _special(ip: IPv4Address | IPv6Address) -> bool:
    if isinstance(ip, IPv4Address):
        return any(ip in network for network in _SPECIAL_4)
    if ip not in _PUBLIC_6 or any(ip in network for network in _SPECIAL_6):
        return True
    # ISATAP, under any prefix: the lower half is ::0:5efe and an IPv4 address (RFC 5214, section 6.1).
    return int(ip) >> 32 & 0xFDFF_FFFF == 0x0000_5EFE


def _system_look_up(name: str) -> Iterable[str]:
    # As bytes, so that the name is used as it is, and not encoded again.
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
