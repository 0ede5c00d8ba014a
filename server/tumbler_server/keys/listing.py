"""Reading keys in pages that neither skip nor repeat a key while others are made."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import peewee

from tumbler_server.clock import NEVER, Clock
from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.keys import access, record
from tumbler_server.keys.paging import cut
from tumbler_server.keys.record import Key, State
from tumbler_server.keys.rules import Check, is_scope
from tumbler_server.keys.tokens import Tokens, fingerprint
from tumbler_server.store.database import Store
from tumbler_server.store.models import ApiKeyRow as Row

_SORTABLE = ("create_time", "name", "expire_time", "last_used_time")


@dataclass(frozen=True)
class Query:
    """What to list; see ListRequest for each field."""

    project_id: str = ""
    environment_id: str = ""
    owner_id: str = ""
    states: tuple[int, ...] = ()
    scope: str = ""
    search: str = ""
    order_by: str = ""
    page_size: int = 0
    page_token: str = ""
    skip: int = 0
    show_total_size: bool = False


@dataclass(frozen=True)
class Page:
    """One page, as of ``now``; of fewer keys than were asked for where an answer has no room for more."""

    keys: tuple[Key, ...]
    next_page_token: str
    total_size: int
    now: int


class Listing:
    """Lists keys."""

    def __init__(self, store: Store, tokens: Tokens, clock: Clock) -> None:
        self._store = store
        self._tokens = tokens
        self._clock = clock

    def page(self, caller: Key, query: Query) -> Page:
        """Return the page that ``query`` asks for, of the keys that the caller may see.

        Raises ``InvalidFields``, and ``OtherProject`` where the query names another project than the caller's.
        """
        column, descending, size = self._check(query)
        project_id = access.scope_of(caller, query.project_id)
        now = self._clock()
        conditions = self._conditions(query, project_id, now)
        filtered = _fingerprint(query, project_id, column, descending)

        sort = getattr(Row, column)
        place = peewee.Tuple(sort, Row.id)
        paged = list(conditions)
        if query.page_token:
            after = peewee.Tuple(*self._tokens.read_page(query.page_token, filtered))
            paged.append(place < after if descending else place > after)
        order = [sort.desc(), Row.id.desc()] if descending else [sort.asc(), Row.id.asc()]
        rows = self._store.select(_where(Row.select(), paged).order_by(*order).limit(size + 1).offset(query.skip))

        keys, more = cut(map(record.from_row, rows), size, record.size)
        return Page(
            keys=keys,
            next_page_token=self._tokens.page(filtered, getattr(keys[-1], column), keys[-1].id) if more else "",
            total_size=self._count(conditions) if query.show_total_size else 0,
            now=now,
        )

    def _check(self, query: Query) -> tuple[str, bool, int]:
        check = Check()
        check.filter("project_id", query.project_id)
        check.filter("environment_id", query.environment_id)
        check.text("owner_id", query.owner_id, 255)
        check.text("search", query.search, 255)
        check.text("scope", query.scope, 128)
        check.named("states", query.states, State)
        size = check.page_size("page_size", query.page_size)
        if query.skip < 0:
            check.fail("skip", "must not be negative")
        check.done()
        return (*_order(query.order_by), size)

    def _conditions(self, query: Query, project_id: str, now: int) -> list[peewee.Node]:
        conditions: list[peewee.Node] = []
        if project_id:
            conditions.append(Row.project_id == project_id)
        if query.environment_id:
            conditions.append(Row.environment_id == query.environment_id)
        if query.owner_id:
            conditions.append(Row.owner_id == query.owner_id)
        if query.states:
            first, *others = set(query.states)
            condition = _IN_STATE[State(first)](now)
            for state in others:
                condition |= _IN_STATE[State(state)](now)
            conditions.append(condition)
        if query.scope:
            # A scope holds no character that JSON escapes, so its quoted text occurs only where it stands itself.
            # Other text could stand between two scopes (`, `) and is none that a key carries.
            carried = self._store.strpos(Row.scopes, json.dumps(query.scope))
            conditions.append(carried if is_scope(query.scope) else peewee.SQL("1 = 0"))
        if query.search:
            conditions.append(self._store.strpos(Row.search_text, query.search.casefold()))
        return conditions

    def _count(self, conditions: list[peewee.Node]) -> int:
        counted = _where(Row.select(peewee.fn.COUNT(Row.id)), conditions).tuples()
        ((total,),) = self._store.select(counted)
        return min(int(total), 2**31 - 1)


_LIVING = (Row.revoke_time == NEVER) & (Row.replaced_by_key_id == "")

_IN_STATE: dict[State, Callable[[int], peewee.Expression]] = {
    State.REVOKED: lambda _: Row.revoke_time != NEVER,
    State.SUPERSEDED: lambda _: (Row.revoke_time == NEVER) & (Row.replaced_by_key_id != ""),
    State.INACTIVE: lambda _: _LIVING & (Row.active == False),  # noqa: E712 - an SQL expression
    State.EXPIRED: lambda now: _LIVING & (Row.active == True) & (Row.expire_time <= now),  # noqa: E712
    State.ACTIVE: lambda now: _LIVING & (Row.active == True) & (Row.expire_time > now),  # noqa: E712
}
"""``Key.state`` in SQL."""


def _where(query: "peewee.ModelSelect[Row]", conditions: list[peewee.Node]) -> "peewee.ModelSelect[Row]":
    return query.where(*conditions) if conditions else query


def _order(order_by: str) -> tuple[str, bool]:
    """Return the column to sort by, and whether downwards."""
    if not order_by:
        return "create_time", True
    column, _, direction = order_by.partition(" ")
    if column not in _SORTABLE or direction not in ("", "asc", "desc"):
        rule = f"must be one of {', '.join(_SORTABLE)}, alone or followed by ` asc` or ` desc`"
        raise InvalidFields([Violation("order_by", rule)])
    return column, direction == "desc"


def _fingerprint(query: Query, project_id: str, column: str, descending: bool) -> str:
    return fingerprint(
        [
            project_id,
            query.environment_id,
            query.owner_id,
            sorted(set(query.states)),
            query.scope,
            query.search,
            column,
            descending,
        ]
    )
