"""Filtered, sorted listing of keys. The cost of a page is bounded whatever the filter and the number of keys.

There are three methods. The first that fits is used:

- *A path*: an index covers both the filter and the order. The cost is proportional to the page.
- *A small set*: one of the filters matches at most ``SORTED`` keys. These are read and sorted.
- *A walk*: index entries are scanned in order, at most ``SCANNED``, or ``READ`` if each entry needs its row. Entries
  that do not match are skipped. A walk that finds too few keys ends the page early and reports where it stopped.

On SQLite, statements name their index. On PostgreSQL, they are written so that only one index can serve them (see
``_entries``). A planner that guesses wrong would read all keys of a project.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tumbler_server.keys import record
from tumbler_server.keys.record import State
from tumbler_server.keys.rules import is_scope
from tumbler_server.limits import LIST_COUNT, LIST_SCAN
from tumbler_server.store.database import COCKROACHDB, SQLITE, Store
from tumbler_server.store.models import STANDING

SCANNED = LIST_SCAN.most
"""Most index entries that one page scans: about 2 ms on SQLite and 6 ms on PostgreSQL."""

READ = 2_000
"""Most rows that one page scans if no index has the columns that the filter needs."""

SORTED = 1_000
"""Most keys to read and sort for a page, if one of the filters matches no more than these."""

COUNTED = LIST_COUNT.most
"""Most keys that a count scans."""

_AT_FIRST = 16
"""Entries that a walk scans first, for each key that it needs."""

_CREATE_TIME = "create_time"


@dataclass(frozen=True)
class KeyFilter:
    """Which keys to find. An empty field matches all keys. States are as of ``now``."""

    project_id: str
    environment_id: str
    owner_id: str
    states: frozenset[State]
    scope: str
    search: str
    now: int


@dataclass(frozen=True)
class Place:
    """Where a page begins: after the entry with this sort value and id, and after ``skip`` more matching keys."""

    value: int | str
    key_id: str
    skip: int = 0


@dataclass(frozen=True)
class FoundKeys:
    """The rows of a page, with the columns of ``record.SELECT``. ``ended`` is where a scan stopped early, if it did."""

    rows: list[tuple[Any, ...]]
    ended: Place | None = None


@dataclass(frozen=True)
class _Sql:
    """A fragment of SQL and its parameters."""

    text: str
    parameters: tuple[object, ...] = ()


@dataclass(frozen=True)
class _Condition:
    """A condition on keys, and the columns that it reads."""

    sql: _Sql
    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Path:
    """The entries of an index whose leading columns have one of ``values``, ordered by ``sort`` and id."""

    index: str
    leading: tuple[str, ...]
    values: tuple[tuple[object, ...], ...]
    sort: str
    conditions: tuple[_Condition, ...] = ()
    """The rest of the filter, which the index does not cover."""
    bound: tuple[str, tuple[object, ...]] | None = None
    """An operator and a value that limit the sort column, if any. Such a path serves only a small set."""
    has: frozenset[str] = field(default_factory=frozenset)
    """The columns that the index holds in addition to its key columns."""

    @property
    def table(self) -> str:
        return "api_key_scope" if self.index == _SCOPES else "api_key"

    @property
    def key(self) -> str:
        return "key_id" if self.index == _SCOPES else "id"

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns that the conditions read."""
        return tuple(dict.fromkeys(column for condition in self.conditions for column in condition.columns))

    @property
    def most(self) -> int:
        """Return how many entries a page may scan."""
        return SCANNED if self.has.issuperset(self.columns) else READ


_SCOPES = "api_key_scope"
_BY_STANDING = "api_key_by_project_standing"


class Finder:
    """Finds keys. Its statements only read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sqlite = store.dialect == SQLITE

    def page(
        self, wanted: KeyFilter, column: str, descending: bool, after: Place | None, skip: int, size: int
    ) -> FoundKeys:
        """Return at most ``size`` rows after a place, ordered by a column and id."""
        path = self._small(wanted, column)
        if path is not None:
            return FoundKeys(self._store.read(*self._sorted(path, wanted, column, descending, after, skip, size)))
        path = self._path(wanted, column)
        if not path.conditions:
            entries = self._merged(path, descending, after, None, skip + size)
            return FoundKeys(self._read(entries, descending, skip, size))
        return self._walk(path, descending, after, skip, size)

    def count(self, wanted: KeyFilter) -> int:
        """Return how many of the first ``COUNTED`` keys scanned match the filter."""
        path = self._small(wanted, _CREATE_TIME) or self._path(wanted, _CREATE_TIME)
        if path.bound is not None:
            path = replace(path, conditions=tuple(self._conditions(wanted)))
        return self._count(self._fitting(path, True, None, None, COUNTED))

    # Choosing

    def _path(self, wanted: KeyFilter, column: str) -> _Path:
        """Return the path to read a page by."""
        if column == _CREATE_TIME and (paths := self._paths(wanted)):
            return paths[0]
        project = (wanted.project_id,) if wanted.project_id else ()
        return _Path(
            f"api_key_by_project_{column}" if project else f"api_key_by_{column}",
            ("project_id",) if project else (),
            (project,),
            column,
            tuple(self._conditions(wanted)),
            has=frozenset({"search_text"} if project and column == _CREATE_TIME else ()),
        )

    def _small(self, wanted: KeyFilter, column: str) -> _Path | None:
        """Return the path of a set small enough to sort, or None if there is none or none is needed."""
        paths = self._paths(wanted)
        if column == _CREATE_TIME and len(paths) < 2 and not (paths and paths[0].conditions):
            return None
        for path in (*paths, *self._expiring(wanted)):
            if self._count(self._merged(path, False, None, None, SORTED + 1)) <= SORTED:
                return path
        return None

    def _paths(self, wanted: KeyFilter) -> list[_Path]:
        """Return one path for each filter, ordered by create_time, the preferred path first."""
        project = wanted.project_id
        if not project:
            return []
        paths = []
        for name, value, index in (
            ("owner_id", wanted.owner_id, "api_key_by_project_owner"),
            ("scope", wanted.scope if self._store.dialect != COCKROACHDB else "", _SCOPES),
            ("environment_id", wanted.environment_id, "api_key_by_project_environment"),
        ):
            if value:
                left = tuple(self._conditions(wanted, but=name))
                paths.append(_Path(index, ("project_id", name), ((project, value),), _CREATE_TIME, left))
        if wanted.states:
            standings = sorted({_STANDINGS[state] for state in wanted.states})
            left = tuple(self._conditions(wanted, but="states"))
            if len(wanted.states & {State.ACTIVE, State.EXPIRED}) == 1:
                left = (_in_states(wanted), *left)
            values = tuple((project, standing) for standing in standings)
            has = frozenset({"standing", "expire_time"})
            paths.append(
                _Path(
                    _BY_STANDING,
                    ("project_id", f"({STANDING})"),
                    values,
                    _CREATE_TIME,
                    left,
                    has=has,
                )
            )
        return paths

    def _expiring(self, wanted: KeyFilter) -> list[_Path]:
        """Return the path of the keys on one side of their expiry, if the filter asks only for ACTIVE or EXPIRED."""
        if not wanted.project_id or wanted.states not in ({State.ACTIVE}, {State.EXPIRED}):
            return []
        compared = "<=" if State.EXPIRED in wanted.states else ">"
        index, project = "api_key_by_project_expire_time", (wanted.project_id,)
        return [_Path(index, ("project_id",), (project,), "expire_time", bound=(compared, (wanted.now,)))]

    def _conditions(self, wanted: KeyFilter, but: str = "") -> list[_Condition]:
        """Return the filter as conditions, without the project and without the field ``but``."""
        conditions = []
        for name, value in (("environment_id", wanted.environment_id), ("owner_id", wanted.owner_id)):
            if value and name != but:
                conditions.append(_Condition(_Sql(f"{name} = ?", (value,)), (name,)))
        if wanted.states and but != "states":
            conditions.append(_in_states(wanted))
        contains = "instr({}, ?) > 0" if self._sqlite else "strpos({}, ?) > 0"
        if wanted.scope and but != "scope":
            # A scope has no character that JSON escapes, so its quoted text occurs only as the scope itself. Other text
            # could match between two scopes (`, `). No key carries it as a scope.
            carried = _Sql(contains.format("scopes"), (f'"{wanted.scope}"',))
            conditions.append(_Condition(carried if is_scope(wanted.scope) else _Sql("1 = 0"), ("scopes",)))
        if wanted.search:
            folded = wanted.search.casefold()
            conditions.append(_Condition(_Sql(contains.format("search_text"), (folded,)), ("search_text",)))
        return conditions

    # Reading

    def _walk(self, path: _Path, descending: bool, after: Place | None, skip: int, size: int) -> FoundKeys:
        # With most filters the first entries fill the page, which takes one statement.
        first = min(_AT_FIRST * (skip + size), path.most)
        rows = self._read(self._fitting(path, descending, after, None, first), descending, skip, size)
        if len(rows) == size:
            return FoundKeys(rows)
        # Read the end first, then everything up to it. A key inserted meanwhile is found or lies after the end.
        end = self._end(path, descending, after, path.most)
        entries = self._fitting(path, descending, after, end, 2 * path.most)
        rows = self._read(entries, descending, skip, size)
        if len(rows) == size or end is None:
            return FoundKeys(rows)
        return FoundKeys(rows, replace(end, skip=0 if rows or not skip else max(0, skip - self._count(entries))))

    def _end(self, path: _Path, descending: bool, after: Place | None, step: int) -> Place | None:
        """Return the last of the next ``step`` entries, or None if none follows it."""
        entries = self._merged(path, descending, after, None, step + 1)
        last = _slice(entries, descending, 2, step - 1)
        found = self._store.read(last.text, last.parameters)
        return Place(*found[0]) if len(found) == 2 else None

    def _read(self, entries: _Sql, descending: bool, skip: int, size: int) -> list[tuple[Any, ...]]:
        """Return ``size`` rows of entries, in order, after skipping ``skip``."""
        way = "DESC" if descending else "ASC"
        page = _slice(entries, descending, size, skip)
        return self._store.read(
            f"SELECT {_COLUMNS} FROM ({page.text}) entry CROSS JOIN api_key k "  # noqa: S608
            f"WHERE k.id = entry.id ORDER BY entry.place {way}, entry.id {way}",
            page.parameters,
        )

    def _sorted(
        self, path: _Path, wanted: KeyFilter, column: str, descending: bool, after: Place | None, skip: int, size: int
    ) -> tuple[str, tuple[object, ...]]:
        """Return the statement that reads a small set and sorts the keys of it that match."""
        way, compared = ("DESC", "<") if descending else ("ASC", ">")
        conditions = [_spelled(condition.sql) for condition in self._conditions(wanted)]
        if after is not None:
            conditions.append(_Sql(f"(k.{column}, k.id) {compared} (?, ?)", (after.value, after.key_id)))
        entries = self._merged(path, False, None, None, 2 * SORTED)  # the set may have grown since the count
        text = (
            f"SELECT {_COLUMNS} FROM ({entries.text}) entry CROSS JOIN api_key k WHERE k.id = entry.id"  # noqa: S608
            f"{''.join(f' AND {condition.text}' for condition in conditions)} "
            f"ORDER BY k.{column} {way}, k.id {way} LIMIT ? OFFSET ?"
        )
        given = (parameter for condition in conditions for parameter in condition.parameters)
        return text, (*entries.parameters, *given, size, skip)

    def _count(self, entries: _Sql) -> int:
        ((count,),) = self._store.read(f"SELECT COUNT(*) FROM ({entries.text}) fitting", entries.parameters)  # noqa: S608
        return int(count)

    # Entries: statements that yield `place` (the sort value), `id` and the requested columns

    def _fitting(self, path: _Path, descending: bool, after: Place | None, end: Place | None, most: int) -> _Sql:
        """Return those of a path's first ``most`` entries after a place, up to an end, that match. Unordered."""
        entries = self._merged(path, descending, after, end, most, path.columns)
        if not path.conditions:
            return entries
        conditions = [condition.sql for condition in path.conditions]
        joined = ""
        if path.index == _SCOPES:  # it has no other columns of a key
            joined = " CROSS JOIN api_key k"
            conditions = [_Sql("k.id = entry.id"), *map(_spelled, conditions)]
        text = f"SELECT entry.place, entry.id FROM ({entries.text}) entry{joined} WHERE " + " AND ".join(  # noqa: S608
            condition.text for condition in conditions
        )
        return _Sql(text, (*entries.parameters, *(value for each in conditions for value in each.parameters)))

    def _merged(
        self,
        path: _Path,
        descending: bool,
        after: Place | None,
        end: Place | None,
        most: int,
        columns: Sequence[str] = (),
    ) -> _Sql:
        """Return the first ``most`` entries of a path after a place, up to an end, in order."""
        streams = [self._entries(path, values, descending, after, end, most, columns) for values in path.values]
        if len(streams) == 1:
            return streams[0]
        way = "DESC" if descending else "ASC"
        text = " UNION ALL ".join(f"SELECT * FROM ({stream.text}) stream" for stream in streams)  # noqa: S608
        return _Sql(
            f"SELECT * FROM ({text}) streams ORDER BY place {way}, id {way} LIMIT {most}",  # noqa: S608
            tuple(parameter for stream in streams for parameter in stream.parameters),
        )

    def _entries(
        self,
        path: _Path,
        values: tuple[object, ...],
        descending: bool,
        after: Place | None,
        end: Place | None,
        most: int,
        columns: Sequence[str],
    ) -> _Sql:
        way = "DESC" if descending else "ASC"
        sort, key = path.sort, path.key
        bounds: list[tuple[str, tuple[object, ...]]] = [] if path.bound is None else [path.bound]
        if after is not None:
            bounds.append(("<" if descending else ">", (after.value, after.key_id)))
        if end is not None:
            bounds.append((">=" if descending else "<=", (end.value, end.key_id)))
        conditions = []
        leading = path.leading
        if self._sqlite:
            conditions += [_Sql(f"{column} = ?", (value,)) for column, value in zip(leading, values, strict=True)]
            conditions += [_compared((sort, key), compared, bound) for compared, bound in bounds]
            order = [sort, key]
            source = path.table if path.table == _SCOPES else f"{path.table} INDEXED BY {path.index}"
        else:
            # Use ranges, not equalities. The planner drops columns that equal a constant from ORDER BY. Then other
            # indexes can serve too, and it prefers one of them if it expects most keys to match.
            for side in "><":
                given = [(compared, bound) for compared, bound in bounds if compared[0] == side]
                for compared, bound in given or ([(f"{side}=", ())] if leading else []):
                    conditions.append(_compared((*leading, sort, key), compared, (*values, *bound)))
            order = [*leading, sort, key]
            source = path.table
        taken = [f"{sort} AS place", f"{key} AS id"]
        if path.index != _SCOPES:
            # On a path of one standing, select the value as a constant: evaluating the expression would read the row.
            standing = str(values[-1]) if path.index == _BY_STANDING else f"({STANDING})"
            taken += [f"{standing} AS standing" if column == "standing" else column for column in columns]
        where = f" WHERE {' AND '.join(condition.text for condition in conditions)}" if conditions else ""
        return _Sql(
            f"SELECT {', '.join(taken)} FROM {source}{where} "  # noqa: S608
            f"ORDER BY {', '.join(f'{column} {way}' for column in order)} LIMIT {most}",
            tuple(parameter for condition in conditions for parameter in condition.parameters),
        )


_COLUMNS = ", ".join(f"k.{column}" for column in record.COLUMNS)

_STANDINGS = {
    State.ACTIVE: 1,
    State.EXPIRED: 1,
    State.INACTIVE: 2,
    State.REVOKED: 4,
    State.SUPERSEDED: 5,
}
"""The value of ``STANDING`` for each state."""


def _slice(entries: _Sql, descending: bool, size: int, skip: int) -> _Sql:
    """Return ``size`` entries in order, after skipping ``skip``."""
    way = "DESC" if descending else "ASC"
    text = f"SELECT place, id FROM ({entries.text}) entries ORDER BY place {way}, id {way} LIMIT ? OFFSET ?"  # noqa: S608
    return _Sql(text, (*entries.parameters, size, skip))


def _in_states(wanted: KeyFilter) -> _Condition:
    """Return ``Key.state`` in SQL."""
    asked: list[str] = []
    parameters: list[object] = []
    for state in sorted(wanted.states):
        condition = f"standing = {_STANDINGS[state]}"
        if state in (State.ACTIVE, State.EXPIRED):
            condition += f" AND expire_time {'>' if state is State.ACTIVE else '<='} ?"
            parameters.append(wanted.now)
        asked.append(f"({condition})")
    return _Condition(_Sql(f"({' OR '.join(asked)})", tuple(parameters)), ("standing", "expire_time"))


def _spelled(condition: _Sql) -> _Sql:
    """Return a condition with the column ``standing`` spelled out, which the table of keys does not have."""
    return replace(condition, text=condition.text.replace("standing", f"({STANDING})"))


def _compared(columns: Sequence[str], compared: str, values: Sequence[object]) -> _Sql:
    """Return the row comparison of ``values`` with as many of ``columns``."""
    slots = ", ".join("?" * len(values))
    return _Sql(f"({', '.join(columns[: len(values)])}) {compared} ({slots})", tuple(values))
