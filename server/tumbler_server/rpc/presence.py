"""Counts calls of one kind from their headers until their answer is read, by party and in all."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from tumbler_server import metrics
from tumbler_server.errors import Overloaded, TumblerError, own
from tumbler_server.rpc.allotment import Allotment
from tumbler_server.rpc.lanes import RETRY
from tumbler_server.shares import CrowdLimit

_CHANCES = 16
"""How many of the calls that have waited longest are searched for one of a stranger."""


class Guest(Protocol):
    """A call that waits, and may be ended."""

    @property
    def peer(self) -> str:
        """The connection, by gRPC's name."""

    @property
    def since(self) -> float:
        """When the wait began, in seconds of the monotonic clock."""

    def end(self, failure: TumblerError) -> None:
        """End the call with this failure."""


class Sender(Protocol):
    """A call whose answer is being sent."""

    @property
    def since(self) -> float:
        """When the answer was ready, in seconds of the monotonic clock."""

    def cut(self) -> None:
        """Cut the call off."""


G = TypeVar("G", Guest, Sender)


class Presence:
    """Counts the calls of one kind. Use it on the loop's thread only."""

    def __init__(self, limit: CrowdLimit, known: Callable[[str], bool] = lambda _: False) -> None:
        """``known`` returns whether a caller was authenticated on a connection."""
        self._gives_way = limit.gives_way
        self._known = known
        self._places = Allotment(limit.most, limit.most_each)
        self._refused = metrics.REFUSED.labels(limit.name)
        self.waiting: dict[Guest, None] = {}
        """Calls that wait for their message or, if the crowd gives way, for anything; the oldest first."""
        self.unread: dict[Sender, None] = {}
        """Calls that have not ended, although their answer or refusal is ready; the oldest first."""

    def __len__(self) -> int:
        return self._places.taken

    def enter(self, party: str, guest: Guest) -> Callable[[object], None]:
        """Count one more call of a party, and return the callback for its end.

        Raises ``Overloaded`` if there is no room, and none can be made.
        """
        places = self._places
        if places.is_full(party) and not (
            self._gives_way and places.of(party) < places.most_each and self._make_room()
        ):
            self._refused.inc()
            raise Overloaded(retry_after=RETRY)
        places.take(party, 1)
        return functools.partial(self._leave, party, guest)

    def end_waiting(self, since: float, failure: TumblerError) -> None:
        """End all calls that have waited since then, or longer."""
        for guest in _taken(self.waiting, since):
            guest.end(own(failure))

    def cut_unread(self, since: float) -> None:
        """Cut off all calls whose answer has been ready since then, or longer."""
        for sender in _taken(self.unread, since):
            sender.cut()

    def _make_room(self) -> bool:
        """End the call that has waited longest, or cut off the one whose answer has been unread for longer.

        Return whether there was one. Waiting calls of authenticated connections are moved to the end instead, so that
        they are not checked again and again: strangers go first.
        """
        for _ in range(min(_CHANCES, len(self.waiting))):
            oldest = next(iter(self.waiting))
            if not self._known(oldest.peer):
                break
            del self.waiting[oldest]
            self.waiting[oldest] = None
        waits, reads = next(iter(self.waiting), None), next(iter(self.unread), None)
        if reads is not None and (waits is None or reads.since < waits.since):
            del self.unread[reads]
            reads.cut()
        elif waits is not None:
            del self.waiting[waits]
            waits.end(Overloaded(retry_after=RETRY))
        return waits is not None or reads is not None

    def _leave(self, party: str, guest: Any, _: object) -> None:
        self.unread.pop(guest, None)
        self._places.give_back(party, 1)


def _taken(guests: dict[G, None], since: float) -> Iterator[G]:
    """Remove and yield the calls that have been there since then, or longer."""
    while guests and (oldest := next(iter(guests))).since <= since:
        del guests[oldest]
        yield oldest
