"""What happened in a run of writes: what was acknowledged to those who wrote, and what the database says in the end.

No secret is in it: what became of one is told by its key's id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Write(NamedTuple):
    """An acknowledged write, by the name of the event that it must have left, and that event's ``revision``.

    ``value`` is the name that the key was given (CREATED, UPDATED) or its successor's id (ROTATED). A key's writes are
    in the order in which they were acknowledged: each has one writer, who begins none before the last was answered.
    """

    type: str
    key_id: str
    revision: int
    value: str = ""
    request_id: str = ""


class Event(NamedTuple):
    """An event of the log, by the name of its type; ``value`` as in ``Write``."""

    revision: int
    type: str
    key_id: str
    value: str = ""


class Row(NamedTuple):
    """A key's row."""

    name: str
    active: bool = True
    revoked: bool = False
    replaces: str = ""
    replaced_by: str = ""


@dataclass(frozen=True)
class History:
    """All of it, taken when nothing was left to be done."""

    writes: Sequence[Write] = ()
    scheduled: frozenset[str] = frozenset()
    """Keys whose rotation has fallen due, which the scheduler has to announce once."""
    events: Sequence[Event] = ()
    """Those of the writers' keys, in the order of the log."""
    rows: Mapping[str, Row] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    """The key that the database names for each request id."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """What each secret that was shown must be, by its key's id, by what was acknowledged of it."""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """What the servers say of it."""
