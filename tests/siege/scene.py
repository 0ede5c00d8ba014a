"""The definition of an attack, its view of the server, and what "held" means for it."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import grpc

from tests.e2e.service import OWN_CONNECTION

TENANT = "acme"
"""The project of the attackers that have a key. benchmarks/seed.py adds its keys there, too."""

ATTACKERS_KEYS: Mapping[str, tuple[str, ...]] = {
    "verify": ("tumbler:keys:verify",),
    "read": ("tumbler:keys:read",),
    "create": ("tumbler:keys:create",),
    "update": ("tumbler:keys:update",),
    "events": ("tumbler:events:read",),
    "rotate": ("tumbler:keys:rotate",),
    "revoke": ("tumbler:keys:revoke",),
}
"""The attackers' keys, each with one scope. An attack that needs two scopes uses two keys."""


@dataclass(frozen=True)
class Scene:
    """An attacker's knowledge of the server."""

    target: str
    keys: Mapping[str, str] = field(repr=False)
    """Texts of keys by the names of ``ATTACKERS_KEYS``."""
    known: str = field(repr=False)
    """The text of an honest key. An attacker uses only its id."""
    seconds: float
    full: bool = False
    ca: bytes | None = None
    """The server's certificate, if it speaks TLS."""
    database: str = ""
    """The database's URL, for accidents."""
    postmaster: int = 0
    """The pid of PostgreSQL's first process, for accidents."""

    @property
    def address(self) -> tuple[str, int]:
        """Return the host and the port."""
        host, _, port = self.target.rpartition(":")
        return host, int(port)

    def channel(self) -> grpc.aio.Channel:
        """Open a connection as a well-behaved client does."""
        return channel(self.target, self.ca)

    def credential(self, name: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call with one of the attackers' keys, or none for an empty name."""
        return (("authorization", f"Bearer {self.keys[name]}"),) if name else ()


def channel(target: str, ca: bytes | None) -> grpc.aio.Channel:
    """Open a channel with a connection of its own."""
    options = (*OWN_CONNECTION, ("grpc.max_send_message_length", -1))
    if ca is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca), options)


@dataclass
class Tally:
    """An attacker's counts of its actions and their outcomes, and the problems that it found itself."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


BEFORE, FLOOD = "before", "flood"


@dataclass(frozen=True)
class Held:
    """The limits on the effect of an attack on honest callers.

    For every attack, no honest call fails, the server's memory stays within bounds, and SIGTERM ends it in time.
    """

    verify: str = ""
    """The comparison for Verify's p99: that ``BEFORE`` the attack, or also that during a ``FLOOD`` of no-op calls."""
    revoke: float | None = None
    """The limit of Revoke's p99, in seconds."""
    excused: frozenset[str] = frozenset()
    """Calls that may fail during the attack, because it blocks a resource that they need."""
    slowest: Mapping[str, float] = field(default_factory=dict)
    """The limit of the slowest response by role, failures included, in seconds."""
    recovery: float = 0.0
    """Seconds after the attack in which calls may still fail."""


OUTSIDER = Held(verify=BEFORE)
FLOODING = Held(verify=FLOOD)
PAYING = Held(revoke=0.25)
"""For attackers with a key."""


@dataclass(frozen=True)
class Attack:
    """A row of the table. ``run`` goes on until it is cancelled or finished."""

    name: str
    what: str
    run: Callable[[Scene, Tally], Awaitable[None]]
    held: Held
    short: bool = False
    """Whether it belongs to the short form."""
    seconds: float = 0.0
    """Its minimum length, in seconds."""
    seconds_full: float = 0.0
    """The same with ``--full``."""
    finishes: bool = False
    """Whether it checks its own outcome, and must run to its end."""
    cost: int = 4
    """The server's bcrypt cost."""
    options: tuple[str, ...] = ()
    """Additional flags of ``serve``."""
    database: str = ""
    """The only database that it applies to, or empty for all."""
    tls: bool = False
    keys: int = 0
    """The number of keys in the attackers' project at the start."""
    new_pepper: bool = False
    """Whether the server starts with a pepper that has signed no digest."""
