"""What an attack is, what it needs to know, and what "held" means for it."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import grpc

from tests.e2e.service import OWN_CONNECTION

TENANT = "acme"
"""The project of the attackers that have a key; benchmarks/seed.py puts its keys there, too."""

ATTACKERS_KEYS: Mapping[str, tuple[str, ...]] = {
    "verify": ("tumbler:keys:verify",),
    "read": ("tumbler:keys:read",),
    "create": ("tumbler:keys:create",),
    "update": ("tumbler:keys:update",),
    "events": ("tumbler:events:read",),
    "rotate": ("tumbler:keys:rotate",),
    "revoke": ("tumbler:keys:revoke",),
}
"""The attackers' keys, each with one scope. Who needs two scopes has two keys."""


@dataclass(frozen=True)
class Scene:
    """What an attacker knows of the server."""

    target: str
    keys: Mapping[str, str] = field(repr=False)
    """Texts of keys by the names of ``ATTACKERS_KEYS``."""
    known: str = field(repr=False)
    """The text of an honest key; of it an attacker uses only the id."""
    seconds: float
    full: bool = False
    ca: bytes | None = None
    """The certificate that the server shows, where it speaks TLS."""
    database: str = ""
    """The database's URL, for accidents."""
    postmaster: int = 0
    """The process id of PostgreSQL's first process, for accidents."""

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port."""
        host, _, port = self.target.rpartition(":")
        return host, int(port)

    def channel(self) -> grpc.aio.Channel:
        """Open a connection as a well-behaved client does."""
        return channel(self.target, self.ca)

    def credential(self, name: str) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call with one of the attackers' keys; none for no name."""
        return (("authorization", f"Bearer {self.keys[name]}"),) if name else ()


def channel(target: str, ca: bytes | None) -> grpc.aio.Channel:
    """Open a connection of one's own."""
    options = (*OWN_CONNECTION, ("grpc.max_send_message_length", -1))
    if ca is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca), options)


@dataclass
class Tally:
    """What an attacker did and met, by what it calls that, and what it found wrong itself."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


BEFORE, FLOOD = "before", "flood"


@dataclass(frozen=True)
class Held:
    """What an honest caller may meet with beside an attack.

    Beside every attack: no honest call fails, the server's memory stays within its bounds, and SIGTERM ends it in time.
    """

    verify: str = ""
    """What Verify's p99 is compared with: itself ``BEFORE``, or also its p99 beside a ``FLOOD`` of no-op calls."""
    revoke: float | None = None
    """Most seconds of Revoke's p99."""
    excused: frozenset[str] = frozenset()
    """The calls that may fail during the attack: what they need is what it takes away."""
    slowest: Mapping[str, float] = field(default_factory=dict)
    """Most seconds that any answer takes, a failure included."""
    recovery: float = 0.0
    """Seconds after the attack in which calls may still fail."""


OUTSIDER = Held(verify=BEFORE)
FLOODING = Held(verify=FLOOD)
PAYING = Held(revoke=0.25)
"""For attackers with a key."""


@dataclass(frozen=True)
class Attack:
    """A row of the table. ``run`` goes on until it is cancelled, or has done all it does."""

    name: str
    what: str
    run: Callable[[Scene, Tally], Awaitable[None]]
    held: Held
    short: bool = False
    """Whether it is one of the most telling."""
    seconds: float = 0.0
    """How long it lasts at least."""
    seconds_full: float = 0.0
    """The same for ``--full``."""
    finishes: bool = False
    """Whether it looks at its own outcome, and must get so far."""
    cost: int = 4
    """bcrypt's cost at the server."""
    options: tuple[str, ...] = ()
    """More flags of ``serve``."""
    database: str = ""
    """The only database that it is for."""
    tls: bool = False
    keys: int = 0
    """How many keys the attackers' project has from the beginning."""
    new_pepper: bool = False
    """Whether the server is restarted with a pepper that has signed no digest."""
