"""The history of a run of writes: what was acknowledged to the writers, and what the database holds in the end.

It contains no secrets. Verdicts on secrets are by key id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Write(NamedTuple):
    """An acknowledged write, with the name and the ``revision`` of the event that it must have left.

    ``value`` is the key's new name (CREATED, UPDATED) or its successor's id (ROTATED). A key's writes are in the order
    of their acknowledgement: each key has one writer, which begins no write before the last response.
    """

    type: str
    key_id: str
    revision: int
    value: str = ""
    request_id: str = ""


class Event(NamedTuple):
    """An event of the log, with the name of its type. ``value`` is as in ``Write``."""

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
    """The whole history, read when no work was left."""

    writes: Sequence[Write] = ()
    scheduled: frozenset[str] = frozenset()
    """Keys whose rotation is due, which the scheduler must announce once."""
    events: Sequence[Event] = ()
    """The events of the writers' keys, in the order of the log."""
    rows: Mapping[str, Row] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    """The key that the database has for each request id."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """By key id, the verdict that each secret must get, according to the acknowledged writes."""
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """By key id, the verdict of the servers."""
