"""The audit trail, as far as a caller may see it."""

from dataclasses import dataclass

from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.events import history
from tumbler_server.events.history import EventFilter
from tumbler_server.events.lineage import Lineage
from tumbler_server.events.log import Event, EventType, sent
from tumbler_server.keys import access
from tumbler_server.keys.paging import cut
from tumbler_server.keys.record import Key
from tumbler_server.keys.rules import Validation
from tumbler_server.secrets.opaque_tokens import OpaqueTokens, Point, fingerprint
from tumbler_server.store.database import Store


@dataclass(frozen=True)
class EventQuery:
    """Which events to list; ListEventsRequest documents each field."""

    project_id: str = ""
    key_id: str = ""
    types: tuple[int, ...] = ()
    since_time: int | None = None
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True)
class EventPage:
    """One page. It is shorter than requested if a response has no room for more events."""

    events: tuple[Event, ...]
    next_page_token: str


class Trail:
    """Lists events."""

    def __init__(self, store: Store, tokens: OpaqueTokens, lineage: Lineage) -> None:
        self._store = store
        self._tokens = tokens
        self._lineage = lineage

    def page(self, caller: Key, query: EventQuery) -> EventPage:
        """Return the requested page of the events that the caller may see.

        Raises ``InvalidFields``, and ``OtherProject`` if the query names a project other than the caller's.
        """
        size = _check(query)
        wanted = EventFilter(
            project_id=access.scope_of(caller, query.project_id),
            key_id=query.key_id,
            types=tuple(sorted(set(query.types))),
            since=query.since_time,
        )
        filtered = fingerprint(["events", wanted.project_id, wanted.key_id, wanted.types, wanted.since])
        after = self._place(query.page_token, filtered) if query.page_token else None
        events, more = cut(history.read(self._store, wanted, after, size + 1), size, sent)
        if not more:
            return EventPage(events, "")
        last = events[-1]
        return EventPage(events, self._tokens.page(filtered, last.revision, self._lineage.mark_of(last.hash)))

    def _place(self, page_token: str, filtered: str) -> int:
        revision, mark, _ = self._tokens.read_page(page_token, filtered)
        after = Point(int(revision), mark)
        if not all(self._lineage.holds([after])):  # events of this history may have that revision and earlier ones
            message = "names an event that was lost when a backup was restored; start again without it"
            raise InvalidFields([Violation("page_token", message)])
        return after.revision


def _check(query: EventQuery) -> int:
    check = Validation()
    check.filter("project_id", query.project_id)
    if query.key_id:
        check.key_id("key_id", query.key_id)
    check.named("types", query.types, EventType)
    size = check.page_size("page_size", query.page_size)
    check.done()
    return size
