"""Paged listing of keys. Pages neither skip nor repeat a key while other keys are created."""

from dataclasses import dataclass

from tumbler_server.clock import Clock
from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.keys import access, record
from tumbler_server.keys.finder import Finder, KeyFilter, Place
from tumbler_server.keys.paging import cut
from tumbler_server.keys.record import Key, State
from tumbler_server.keys.rules import Validation
from tumbler_server.limits import LIST_SKIP
from tumbler_server.secrets.opaque_tokens import OpaqueTokens, fingerprint
from tumbler_server.store.database import Store

_SORTABLE = ("create_time", "name", "expire_time", "last_used_time")


@dataclass(frozen=True)
class Query:
    """Which keys to list; ListRequest documents each field."""

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
    """One page, as of ``now``. It is shorter than requested if a response has no room for more keys."""

    keys: tuple[Key, ...]
    next_page_token: str
    total_size: int
    now: int


class Listing:
    """Lists keys."""

    def __init__(self, store: Store, tokens: OpaqueTokens, clock: Clock) -> None:
        self._finder = Finder(store)
        self._tokens = tokens
        self._clock = clock

    def page(self, caller: Key, query: Query) -> Page:
        """Return the requested page of the keys that the caller may see.

        Raises ``InvalidFields``, and ``OtherProject`` if the query names a project other than the caller's.
        """
        column, descending, size = self._check(query)
        project_id = access.scope_of(caller, query.project_id)
        wanted = KeyFilter(
            project_id=project_id,
            environment_id=query.environment_id,
            owner_id=query.owner_id,
            states=frozenset(map(State, query.states)),
            scope=query.scope,
            search=query.search,
            now=self._clock(),
        )
        filtered = filter_fingerprint(query, project_id, column, descending)
        after = Place(*self._tokens.read_page(query.page_token, filtered)) if query.page_token else None
        skip = query.skip + (after.skip if after else 0)
        found = self._finder.page(wanted, column, descending, after, skip, size + 1)

        records = (record.from_tuple(row)[0] for row in found.rows)
        keys, more = cut(records, size, record.size)
        following = Place(getattr(keys[-1], column), keys[-1].id) if more else found.ended
        return Page(
            keys=keys,
            next_page_token=_token(self._tokens, filtered, following),
            total_size=self._finder.count(wanted) if query.show_total_size else 0,
            now=wanted.now,
        )

    def _check(self, query: Query) -> tuple[str, bool, int]:
        check = Validation()
        check.filter("project_id", query.project_id)
        check.filter("environment_id", query.environment_id)
        check.text("owner_id", query.owner_id, 255)
        check.text("search", query.search, 255)
        check.text("scope", query.scope, 128)
        check.named("states", query.states, State)
        size = check.page_size("page_size", query.page_size)
        if not 0 <= query.skip <= LIST_SKIP.most:
            check.fail("skip", f"must be 0 to {LIST_SKIP.most:,}; use page_token to go further")
        check.done()
        return (*_order(query.order_by), size)


def _token(tokens: OpaqueTokens, filtered: str, following: Place | None) -> str:
    return tokens.page(filtered, following.value, following.key_id, following.skip) if following else ""


def _order(order_by: str) -> tuple[str, bool]:
    """Return the sort column and whether the order is descending. Raises ``InvalidFields``."""
    if not order_by:
        return "create_time", True
    column, _, direction = order_by.partition(" ")
    if column not in _SORTABLE or direction not in ("", "asc", "desc"):
        rule = f"must be one of {', '.join(_SORTABLE)}, optionally followed by ` asc` or ` desc`"
        raise InvalidFields([Violation("order_by", rule)])
    return column, direction == "desc"


def filter_fingerprint(query: Query, project_id: str, column: str, descending: bool) -> str:
    """Return the fingerprint of a filter and order, to which page tokens are bound."""
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
