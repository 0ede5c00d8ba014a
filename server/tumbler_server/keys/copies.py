"""Copies of the log that are kept elsewhere: writing them, and holding the log against them.

Whoever can write to the database can make the log anew, hashes and all. A copy, or only the line that ``audit head``
prints, shows that: the hash of an event stands for all events before it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tumbler_server.clock import rfc3339
from tumbler_server.events import log
from tumbler_server.events.log import Event, EventType
from tumbler_server.store.database import Store

_PAGE = 1_000
_SHOWN = 20
_HEAD = re.compile(r"event (\d{1,19}) sha256:([0-9a-f]{64})\b.*")
_LONGEST_LINE = 1 << 20


def head(store: Store) -> str:
    """Return one line that stands for the whole log; ``against`` reads it."""
    newest = log.head(store)
    return f"event {newest.revision} sha256:{newest.hash.hex()}"


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

    ``compared`` events are the same in both; of ``removed`` the log keeps nothing any more, by their age.
    """

    compared: int
    removed: int
    problems: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.problems


def against(store: Store, copy: Iterable[str]) -> Comparison:
    """Hold the log against lines of ``lines`` or of ``head``, in any order. At most 20 problems are named."""
    anchored, newest = log.anchor(store), log.head(store).revision
    compared = removed = 0
    problems: list[str] = []
    for part in _parts(copy, problems):
        found = {event.revision: event.hash.hex() for event in _events(store, part)}
        for revision, told in part.items():
            if revision > newest:
                problems.append(f"the copy has event {revision}; the log ends with event {newest}")
            elif revision in found and found[revision] != told:
                problems.append(f"event {revision} is not the one that was copied")
            elif revision in found:
                compared += 1
            elif revision > anchored:
                problems.append(f"event {revision} is missing")
            else:
                removed += 1
        if len(problems) >= _SHOWN:
            break
    if not problems and not compared and not removed:
        problems.append("the copy has no event")
    return Comparison(compared, removed, tuple(problems[:_SHOWN]))


def _parts(copy: Iterable[str], problems: list[str]) -> Iterator[dict[int, str]]:
    """Give the copy's hashes by their revisions, some at a time. What is no line of a copy is a problem."""
    part: dict[int, str] = {}
    for number, line in enumerate(copy, start=1):
        if not line.strip():
            continue
        try:
            revision, told = _read(line)
        except (ValueError, KeyError, TypeError):
            problems.append(f"line {number} of the copy is neither of `audit export` nor of `audit head`")
            if len(problems) >= _SHOWN:
                return
            continue
        part[revision] = told
        if len(part) == _PAGE:
            yield part
            part = {}
    if part:
        yield part


def _read(line: str) -> tuple[int, str]:
    if len(line) > _LONGEST_LINE:
        raise ValueError
    if match := _HEAD.fullmatch(line.strip()):
        return int(match[1]), match[2]
    told = json.loads(line)
    return int(told["revision"]), str(told["hash"])


def _events(store: Store, part: dict[int, str]) -> list[Event]:
    slots = ", ".join("?" * len(part))
    return log.select(store, f"revision IN ({slots})", tuple(part), len(part))


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
