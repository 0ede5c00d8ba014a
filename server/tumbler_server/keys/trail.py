"""The audit trail, as far as a caller may see it."""

from dataclasses import dataclass

from tumbler_server.events import history
from tumbler_server.events.history import EventFilter
from tumbler_server.events.log import Event, EventType, sent
from tumbler_server.keys import access
from tumbler_server.keys.paging import cut
from tumbler_server.keys.record import Key
from tumbler_server.keys.rules import Validation
from tumbler_server.secrets.opaque_tokens import OpaqueTokens, fingerprint
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

    def __init__(self, store: Store, tokens: OpaqueTokens) -> None:
        self._store = store
        self._tokens = tokens

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
        after = int(self._tokens.read_page(query.page_token, filtered)[0]) if query.page_token else None
        events, more = cut(history.read(self._store, wanted, after, size + 1), size, sent)
        return EventPage(events, self._tokens.page(filtered, events[-1].revision, "") if more else "")


def _check(query: EventQuery) -> int:
    check = Validation()
    check.filter("project_id", query.project_id)
    if query.key_id:
        check.key_id("key_id", query.key_id)
    check.named("types", query.types, EventType)
    size = check.page_size("page_size", query.page_size)
    check.done()
    return size
