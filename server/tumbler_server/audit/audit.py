"""The audit: whether the log is what was written, and every key's row what the log says.

It reads everything, in pages, while changes go on. It trusts the head and anchor of the log: an attacker who can write
to the database can move both, and rewrite what is between them. A copy that is kept elsewhere shows that
(``audit.copies``). The retention, which the database does not know, shows an anchor that was moved past young events.
docs/security.md says what an audit can find.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tumbler_server.audit.copies import STRANGE
from tumbler_server.clock import NEVER, Clock, rfc3339, system_clock
from tumbler_server.events import kept, log
from tumbler_server.events.kept import ALTERED
from tumbler_server.events.log import GENESIS, EventType
from tumbler_server.keys import evidence, record, schedule
from tumbler_server.keys.evidence import Row
from tumbler_server.scheduler import alarms, timekeeping
from tumbler_server.store.database import COCKROACHDB, POSTGRESQL, SQLITE, Read, Store
from tumbler_server.store.models import MODELS

_SHOWN = 20
_PAGE = 2_000

Progress = Callable[[str, int, int], None]
"""Is told what is being read, how much of it has been, and about how much there is."""


@dataclass(frozen=True)
class Audit:
    """What an audit found: true if nothing is wrong. At most 20 problems of a kind are named.

    Checked were the ``events`` of the log, the oldest of them made at ``since``, and ``keys``; ``removed`` events came
    before them and are not kept any more. Of ``untold`` keys no event says what is stored of them.
    """

    events: int
    problems: tuple[str, ...]
    removed: int = 0
    since: int = 0
    keys: int = 0
    untold: int = 0

    def __bool__(self) -> bool:
        return not self.problems


def run(
    store: Store, clock: Clock = system_clock, progress: Progress = lambda *_: None, retention: int | None = None
) -> Audit:
    """Check the whole chain from its anchor to its head, the events kept before it, and every key's row.

    With the servers' retention, in microseconds, also check that no event was removed before its time.
    """
    heads = store.read("SELECT revision, hash, anchor_revision, anchor_hash FROM log_head WHERE id = 1")
    if not heads:
        return Audit(0, ("the log has no head: its one row is gone",))
    newest, newest_hash, anchored, anchor_hash = heads[0]
    chain = _Chain(store, newest, newest_hash, anchored, anchor_hash, progress)
    rows = _Rows(store, clock, progress)
    problems: list[str] = []
    for what, check in (
        ("the schema", lambda: _schema(store)),
        ("the log", chain.problems),
        ("older events", lambda: store.snapshot(_kept_problems)),
        ("removed events", lambda: _removed_early(store, removable(clock, retention))),
        ("the keys", rows.problems),
        ("the keys of events", lambda: _gone(store)),
        ("the projects", lambda: _counts(store)),
        ("the scopes", lambda: _scopes(store)),
        ("the deliveries", lambda: _deliveries(store)),
    ):
        problems += _told(what, check)
    return Audit(chain.events, tuple(problems), chain.removed, chain.since, rows.seen, rows.untold)


def _told(what: str, check: Callable[[], Iterable[str]]) -> list[str]:
    """Return the first problems that a check names. All is read, so that what was read is counted.

    SQLite keeps any value in any column: one that no check understands hides nothing that another one finds.
    """
    shown: list[str] = []
    found = 0
    try:
        for found, problem in enumerate(check(), start=1):
            if found <= _SHOWN:
                shown.append(problem)
    except STRANGE as failure:
        shown.append(f"{what}: a value that this program never writes ({type(failure).__name__})")
    if found > _SHOWN:
        shown.append(f"{what}: {found - _SHOWN:,} more")
    return shown


class _Chain:
    """The log, from its anchor to its head."""

    def __init__(
        self, store: Store, newest: int, newest_hash: object, anchored: int, anchor_hash: object, progress: Progress
    ) -> None:
        self._store = store
        self._newest = newest
        self._hash = log.blob(newest_hash)
        self._progress = progress
        self._anchor_hash = log.blob(anchor_hash)
        whole = isinstance(newest, int) and isinstance(anchored, int)
        self.removed = anchored if whole else 0
        self.events = newest - anchored if whole else 0
        self.since = 0

    def problems(self) -> Iterator[str]:
        """Read the whole log, and give what is wrong with it."""
        newest, anchored = self._newest, self.removed
        yield from _ends(self._store, newest, anchored, self._anchor_hash)
        reached, chained, wrong = anchored, self._anchor_hash, 0
        for link in log.links(self._store, up_to=newest):
            self.since = self.since or link.time
            reached, chained = link.revision, link.hash
            found = [each for each in (link.problem, _told_alteration(link.key_id, link.revision, link.detail)) if each]
            yield from found
            wrong += len(found)
            if wrong >= _SHOWN:
                return
            if not link.revision % _PAGE:
                self._progress("events", link.revision - anchored, newest - anchored)
        if reached < newest and log.anchor(self._store) < newest:
            yield f"events {reached + 1} to {newest} are missing"
        elif reached == newest and chained != self._hash:
            yield f"the head's hash is not that of event {newest}"


def removable(clock: Clock, retention: int | None) -> int:
    """Return the time before which events may have been removed; without a retention it is not known: ``NEVER``.

    It goes by this machine's clock: the installation's time is a row that anybody who writes to the database can set.
    A wrong clock can remove events a day early (``scheduler.timekeeping``).
    """
    return NEVER if retention is None else clock() - retention + timekeeping.LEAP


def _removed_early(store: Store, removable: int) -> Iterator[str]:
    """Name the keys with an event that is too young to have been removed: their last, or the one that created them."""
    if removable == NEVER:
        return
    found = store.read(
        "SELECT e.key_id, e.revision, e.time FROM event e, log_head h "
        "WHERE h.id = 1 AND e.revision <= h.anchor_revision AND e.time >= ? ORDER BY e.revision LIMIT ?",
        (removable, _SHOWN),
    )
    for key_id, revision, time in found:
        yield f"event {revision} of key {key_id} is of {rfc3339(time)}, but the log begins after it"
    found = store.read(
        "SELECT k.id, k.create_time FROM api_key k WHERE k.create_time >= ? AND k.revision > 0 AND NOT EXISTS "
        "(SELECT 1 FROM event e WHERE e.key_id = k.id AND e.type = ?) ORDER BY k.id LIMIT ?",
        (removable, EventType.CREATED, _SHOWN),
    )
    for key_id, time in found:
        yield f"key {key_id} was created at {rfc3339(time)}, but no event says so"


def _now(store: Store, clock: Clock) -> int:
    """Return the time that alarms are judged by: that of the server that acts, where it is ahead of this one."""
    with contextlib.suppress(IndexError):  # the mark is gone
        return max(clock(), timekeeping.read_mark(store).time)
    return clock()


def _ends(store: Store, newest: int, anchored: int, anchor_hash: bytes) -> Iterator[str]:
    ((strays,),) = store.read(
        "SELECT COUNT(*) FROM event e, log_head h WHERE h.id = 1 AND (e.revision > h.revision OR e.revision < 1)"
    )
    if strays:
        yield f"{strays} events are outside the log: before its first event or after its head"
    if anchored < 0 or 0 < anchored >= newest:
        yield f"events up to {anchored} of {newest} are marked as removed: the newest is never removed"
    if anchored == 0 and anchor_hash != GENESIS:
        yield "no event is marked as removed, but the chain does not start at its beginning"


def _told_alteration(key_id: str, revision: int, detail: str) -> str:
    """Return the problem that an event tells of: whoever wrote it found the row changed by hand."""
    if ALTERED not in detail:
        return ""
    try:
        names = json.loads(detail).get(ALTERED, "")
    except STRANGE:
        return ""  # the chain does not hold it
    return f"key {key_id} was changed without an event before event {revision}: {names}" if names else ""


def _kept_problems(read: Read) -> list[str]:
    """Check the events that are kept from before the anchor. Each has to be its key's last, and all give their sum.

    All reads must see the same state: each change of a key of that age moves the sum.
    """
    ((anchored, expected),) = read("SELECT anchor_revision, kept FROM log_head WHERE id = 1", ())
    total, after, problems = kept.NONE, 0, []
    while page := kept.page(read, int(anchored), after, _PAGE):
        total = kept.add(total, (row for _, row in page))
        problems += [f"event {row[0]} is outside the log: it was removed" for last, row in page if not last]
        problems += filter(None, (_told_alteration(row[2], row[0], row[8]) for _, row in page))
        after = page[-1][1][0]
    if total != log.blob(expected):
        problems.append(f"a kept event up to {anchored} was changed or removed")
    return problems


class _Rows:
    """Every key's row, held against its last event."""

    def __init__(self, store: Store, clock: Clock, progress: Progress) -> None:
        self._store = store
        self._clock = clock
        self._now = 0
        self._progress = progress
        self.seen = 0
        self.untold = 0

    def problems(self) -> Iterator[str]:
        """Read all rows, and give what is wrong with them."""
        self._now = _now(self._store, self._clock)
        ((count,),) = self._store.read("SELECT SUM(keys) FROM project")
        after = ""
        while page := evidence.page(self._store.read, after, _PAGE):
            for row in page:
                try:
                    yield from self._judge(row)
                except STRANGE as failure:
                    name = type(failure).__name__
                    yield f"key {row.columns['id']} was changed without an event: it has a strange value ({name})"
            after = page[-1].columns["id"]
            self.seen += len(page)
            self.untold += sum(row.told == b"" for row in page)
            self._progress("keys", self.seen, int(count or 0))

    def _judge(self, row: Row) -> Iterator[str]:
        key_id = row.columns["id"]
        if row.told is None:
            yield f"key {key_id} was changed without an event"
        elif altered := row.altered():
            yield f"key {key_id} was changed without an event: {', '.join(altered)}"
        elif not row.told and self._store.dialect != COCKROACHDB:  # there, no step could record them
            yield f"key {key_id} was changed by an older server: stop all of those, and run `tumbler-server migrate`"
        elif row.told and not self._in_time(row):
            yield f"key {key_id} was changed without an event: alarm_time"

    def _in_time(self, row: Row) -> bool:
        """Return whether a key is looked at when something of it is due, or soon enough; 0: it is looked at next."""
        if not isinstance(row.alarm_time, int):
            return False
        if row.alarm_time == 0 or self._now < row.alarm_time <= self._now + alarms.AGAIN:
            return True
        key = record.from_columns(row.columns)
        if row.alarm_time == NEVER and (self._now >= key.expire_time or key.expire_time <= key.update_time):
            return True
        return row.alarm_time == schedule.alarm_time(key, key.update_time)


_TRIGGERS = frozenset({"api_key_scope_inserted", "api_key_scope_updated"})


def _schema(store: Store) -> list[str]:
    """Name what stands in a table's place, or adds to it: a view shows what it likes, a rule or trigger writes so."""
    tables = [model._meta.table_name for model in MODELS]
    ours = f"(SELECT to_regclass(name) FROM unnest(ARRAY[{', '.join('?' * len(tables))}]) name)"  # noqa: S608
    if store.dialect == SQLITE:
        plain = [name for (name,) in store.read("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        triggers = store.read("SELECT name FROM sqlite_schema WHERE type IN ('trigger', 'view')")
    elif store.dialect == POSTGRESQL:
        relation = "relkind = 'r' AND NOT relhasrules AND NOT relrowsecurity"
        found = store.read(f"SELECT relname FROM pg_class WHERE {relation} AND oid IN {ours}", tables)  # noqa: S608
        plain = [name for (name,) in found]
        triggers = store.read(f"SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN {ours}", tables)  # noqa: S608
    else:
        return []
    return [
        *(f"{name} is not a plain table as `migrate` makes it" for name in tables if name not in plain),
        *(f"{name} is a trigger or view that `migrate` does not make" for (name,) in triggers if name not in _TRIGGERS),
    ]


def _gone(store: Store) -> list[str]:
    found = store.read(
        "SELECT DISTINCT e.key_id FROM event e LEFT JOIN api_key k ON k.id = e.key_id "
        "WHERE k.id IS NULL AND e.key_id <> '' LIMIT ?",
        (_SHOWN,),
    )
    return [f"key {key_id} has events but is gone" for (key_id,) in found]


def _counts(store: Store) -> list[str]:
    """Check how many keys each project is said to have."""
    no_number = "OR TYPEOF(p.keys) <> 'integer'" if store.dialect == SQLITE else ""
    found = store.read(
        "SELECT COALESCE(p.project_id, k.project_id) FROM project p FULL OUTER JOIN "  # noqa: S608 - no input in it
        "(SELECT project_id, COUNT(*) AS keys FROM api_key GROUP BY project_id) k ON k.project_id = p.project_id "
        f"WHERE p.keys IS NULL OR p.keys <> COALESCE(k.keys, 0) {no_number} LIMIT ?",
        (_SHOWN,),
    )
    return [f"project {project_id} has a different number of keys than its count says" for (project_id,) in found]


def _scopes(store: Store) -> list[str]:
    """Check the table that lists of scopes are read from. Each key's own scopes are in its row."""
    carried = (
        "json_each(k.scopes) s" if store.dialect == "sqlite" else "json_array_elements_text(k.scopes::json) s (value)"
    )
    lateral = "" if store.dialect == "sqlite" else " LATERAL"
    found = store.read(
        f"SELECT k.id FROM api_key k CROSS JOIN{lateral} {carried} "  # noqa: S608 - no input in it
        "LEFT JOIN api_key_scope a ON a.project_id = k.project_id AND a.scope = s.value "
        "AND a.create_time = k.create_time AND a.key_id = k.id WHERE a.key_id IS NULL LIMIT ?",
        (_SHOWN,),
    )
    slips = store.read(
        "SELECT a.key_id FROM api_key_scope a LEFT JOIN api_key k ON k.id = a.key_id AND k.project_id = a.project_id "  # noqa: S608
        "AND k.create_time = a.create_time WHERE k.id IS NULL OR NOT EXISTS "
        f"(SELECT 1 FROM {carried} WHERE s.value = a.scope) LIMIT ?",
        (_SHOWN,),
    )
    return [f"key {key_id} is indexed by other scopes than its own" for (key_id,) in dict.fromkeys((*found, *slips))]


def _deliveries(store: Store) -> list[str]:
    """Check what is to be told of events that are still there, and that nothing is of events that never were."""
    found = store.read(
        "SELECT d.id FROM log_head h CROSS JOIN webhook_delivery d LEFT JOIN event e ON e.revision = d.revision "
        "WHERE h.id = 1 AND (d.key_id <> e.key_id OR d.project_id <> e.project_id OR d.type <> e.type "
        "OR d.event_time <> e.time OR d.detail <> e.detail "
        "OR (e.revision IS NULL AND (d.revision > h.anchor_revision OR d.revision < 1))) "
        "LIMIT ?",
        (_SHOWN,),
    )
    return [f"delivery {delivery_id} does not match its event" for (delivery_id,) in found]
