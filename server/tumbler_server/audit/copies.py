"""Copies of the log that are kept elsewhere: writing them, and holding the log against them.

Whoever can write to the database can make the log anew, hashes and all. A copy, or only the line that ``audit head``
prints, shows that: the hash of an event stands for all events before it.
"""

import datetime
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import peewee

from tumbler_server.clock import NEVER, rfc3339
from tumbler_server.events import log
from tumbler_server.events.log import Event, EventType
from tumbler_server.store.database import Store

_PAGE = 1_000
_SHOWN = 20
_HEAD = re.compile(r"event (\d{1,19}) sha256:([0-9a-f]{64})\b(?: at (\S{20,27}))?.*")
_LONGEST_LINE = 1 << 20
_LONGEST_ID = 64
_MOST_REVISIONS = 1 << 63
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)

STRANGE = (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, peewee.DataError)
"""What is raised where a value is none that this program writes: no number, no JSON, too large, too deep."""


def head(store: Store) -> str:
    """Return one line that stands for the whole log; ``against`` reads it."""
    newest = log.head(store)
    line = f"event {newest.revision} sha256:{newest.hash.hex()}"
    times = store.read("SELECT time FROM event WHERE revision = ?", (newest.revision,))
    return f"{line} at {rfc3339(times[0][0])}" if times else line


def lines(store: Store, after: int = 0) -> Iterator[str]:
    """Give every event of the log after a revision as a JSON object in a line, its hash included."""
    up_to = log.head(store).revision
    while after < up_to and (page := log.events_after(store, after, _PAGE)):
        for event in page:
            if event.revision <= up_to:
                yield json.dumps(_plain(event), ensure_ascii=False)
        after = page[-1].revision


@dataclass(frozen=True)
class Comparison:
    """What the log and a copy of it have to do with each other: true where nothing contradicts.

    ``compared`` lines tell what the log tells; ``removed`` ones tell of events that it does not keep any more.
    """

    compared: int
    removed: int
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems


def against(store: Store, copy: Iterable[str], removable: int = NEVER) -> Comparison:
    """Compare the log with lines of ``lines`` or of ``head``, in any order. At most 20 problems are named.

    Every field of a key's last event is compared, since the hash chain does not cover it once older events are removed.
    An event of a time from ``removable`` on must not have been removed.
    """
    anchored, newest = log.anchor(store), log.head(store).revision
    compared = removed = 0
    problems: list[str] = []
    last: dict[str, int] = {}
    for part in _parts(copy, problems):
        found = {event.revision: event for event in _events(store, part)}
        for line in part:
            last[line.key_id] = max(line.revision, last.get(line.key_id, 0))
            event = found.get(line.revision)
            if line.revision > newest:
                problems.append(f"the copy has event {line.revision}; the log ends with event {newest}")
            elif event is None and line.revision > anchored:
                problems.append(f"event {line.revision} is missing")
            elif event is None and line.time >= removable:
                problems.append(f"event {line.revision} is of {rfc3339(line.time)}, but the log begins after it")
            elif event is None:
                removed += 1
            elif line.fits(event):
                compared += 1
            else:
                problems.append(f"event {line.revision} differs from the copy")
        if len(problems) >= _SHOWN:
            break
    last.pop("", None)
    problems += _gone(store, last, anchored)
    if not problems and not compared and not removed:
        problems.append("the copy holds no events")
    return Comparison(compared, removed, tuple(problems[:_SHOWN]))


class _Line(NamedTuple):
    """What a line of a copy says. ``told`` is the whole event, None where only its hash was noted down.

    ``time`` is 0 if the line does not say it.
    """

    revision: int
    hash: str
    time: int = 0
    key_id: str = ""
    told: dict[str, object] | None = None

    def fits(self, event: Event) -> bool:
        """Say whether this is the event that was copied."""
        try:
            return event.hash.hex() == self.hash and (self.told is None or self.told == _plain(event))
        except STRANGE:
            return False  # SQLite keeps any value in any column, and the copy holds what was written


def _parts(copy: Iterable[str], problems: list[str]) -> Iterator[list[_Line]]:
    """Give the copy's lines, some at a time. What is no line of a copy is a problem."""
    part: list[_Line] = []
    for number, line in enumerate(copy, start=1):
        if not line.strip():
            continue
        try:
            part.append(_read(line))
        except (LookupError, *STRANGE):
            problems.append(f"line {number} of the copy is not from `audit export` or `audit head`")
            if len(problems) >= _SHOWN:
                return
        if len(part) == _PAGE:
            yield part
            part = []
    if part:
        yield part


def _read(line: str) -> _Line:
    if len(line) > _LONGEST_LINE:
        raise ValueError
    if match := _HEAD.fullmatch(line.strip()):
        return _Line(_revision(int(match[1])), match[2], _instant(match[3]) if match[3] else 0)
    told = json.loads(line)
    key_id = str(told["key_id"])
    if len(key_id) > _LONGEST_ID or not (key_id.isascii() and key_id.isprintable()):
        raise ValueError
    return _Line(_revision(int(told["revision"])), str(told["hash"]), _instant(told["time"]), key_id, told)


def _instant(text: str) -> int:
    """Return an instant that ``rfc3339`` wrote. Raises ``ValueError`` and ``AttributeError``."""
    moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def _revision(number: int) -> int:
    if not 0 <= number < _MOST_REVISIONS:
        raise ValueError
    return number


def _events(store: Store, part: list[_Line]) -> list[Event]:
    slots = ", ".join("?" * len(part))
    return log.kept(store, f"revision IN ({slots})", [line.revision for line in part])


def _gone(store: Store, last: dict[str, int], anchored: int) -> Iterator[str]:
    """Name keys whose last event in the copy is older than the log, and not kept though no newer one has come."""
    older = [key_id for key_id, revision in last.items() if revision <= anchored]
    for begin in range(0, len(older), _PAGE):
        part = older[begin : begin + _PAGE]
        rows = store.read(
            f"SELECT key_id, MAX(revision) FROM event WHERE key_id IN ({', '.join('?' * len(part))}) GROUP BY key_id",  # noqa: S608
            part,
        )
        newest = dict(rows)
        for key_id in part:
            if newest.get(key_id, 0) < last[key_id]:
                yield f"key {key_id} has event {last[key_id]} in the copy, but the log has neither it nor a later one"


def _plain(event: Event) -> dict[str, object]:
    return {
        "revision": event.revision,
        "type": EventType(event.type).name if event.type in set(EventType) else event.type,
        "key_id": event.key_id,
        "project_id": event.project_id,
        "environment_id": event.environment_id,
        "time": rfc3339(event.time),
        "actor": {"key_id": event.actor_key_id, "name": event.actor_name},
        "detail": event.detail,
        "client_address": event.address or "",
        "request_id": event.request_id or "",
        "record": (event.record or b"").hex(),
        "hash": event.hash.hex(),
    }
