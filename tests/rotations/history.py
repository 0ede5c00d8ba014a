"""The history of a run of rotations: the received webhooks, the owners' claims, and the contents of the database.

It contains no claim tokens. A claim is identified by the id of its webhook.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

UNKNOWN = "UNKNOWN"
"""The outcome of a claim whose response was lost. The claim may have been made or not."""

OK = "OK"


class Arrival(NamedTuple):
    """A received webhook. ``digest`` is that of its body, and ``status`` is the response."""

    webhook_id: str
    type: str
    key_id: str
    digest: str
    signed: bool
    status: int


class Claim(NamedTuple):
    """A call of ClaimRotation with the token from a webhook. ``outcome`` is OK, UNKNOWN, or the reason of an error."""

    webhook_id: str
    outcome: str
    successor: str = ""


class Event(NamedTuple):
    """An event of the log, with the name of its type."""

    revision: int
    type: str
    key_id: str
    detail: Mapping[str, str]


class Row(NamedTuple):
    """A delivery's row, with the names of its type and state."""

    revision: int
    webhook_id: str
    type: str
    key_id: str
    state: str


class KeyRow(NamedTuple):
    """A key's row. ``ended`` means that it is revoked, or replaced and past its grace, and must be refused."""

    id: str
    replaces: str
    replaced_by: str
    revoked: bool
    ended: bool
    due_revision: int


@dataclass(frozen=True)
class History:
    """The whole history, read when every server was up and no work was left."""

    arrivals: Sequence[Arrival] = ()
    claims: Sequence[Claim] = ()
    events: Sequence[Event] = ()
    rows: Sequence[Row] = ()
    keys: Sequence[KeyRow] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """By key id, the verdict on each secret that was shown."""
