"""What happened in a run of rotations: what the receiver was sent, what its owners did, and what the database says.

No claim token is in it; whatever was claimed is known by its webhook's id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

UNKNOWN = "UNKNOWN"
"""How a claim ended whose answer was lost: it may have been made or not."""

OK = "OK"


class Arrival(NamedTuple):
    """A webhook that came: its ``digest`` stands for the body, ``status`` is what it was answered."""

    webhook_id: str
    type: str
    key_id: str
    digest: str
    signed: bool
    status: int


class Claim(NamedTuple):
    """A call of ClaimRotation with the token that came with a webhook: ``outcome`` is OK, UNKNOWN, or a reason."""

    webhook_id: str
    outcome: str
    successor: str = ""


class Event(NamedTuple):
    """An event of the log, by the name of its type."""

    revision: int
    type: str
    key_id: str
    detail: Mapping[str, str]


class Row(NamedTuple):
    """A delivery's row; type and state by their names."""

    revision: int
    webhook_id: str
    type: str
    key_id: str
    state: str


class KeyRow(NamedTuple):
    """A key's row. ``ended``: it was revoked, or replaced and its grace has passed, and must be refused."""

    id: str
    replaces: str
    replaced_by: str
    revoked: bool
    ended: bool
    due_revision: int


@dataclass(frozen=True)
class History:
    """All of it, taken when every server was up and nothing was left to be done."""

    arrivals: Sequence[Arrival] = ()
    claims: Sequence[Claim] = ()
    events: Sequence[Event] = ()
    rows: Sequence[Row] = ()
    keys: Sequence[KeyRow] = ()
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """What became of each secret that anybody was shown, by its key's id."""
