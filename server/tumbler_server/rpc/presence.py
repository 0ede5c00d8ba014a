"""Who is here: calls of one kind, from their headers until their answer is taken, counted by party and in all."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from tumbler_server import metrics
from tumbler_server.errors import Overloaded, TumblerError
from tumbler_server.rpc.allotment import Allotment
from tumbler_server.rpc.lanes import RETRY
from tumbler_server.shares import CrowdLimit

_CHANCES = 16
"""How many of those that wait longest are looked at for one of a stranger."""


class Guest(Protocol):
    """A call, as those know it who may end it."""

    @property
    def peer(self) -> str:
        """The connection, by the name that gRPC has for it."""

    @property
    def since(self) -> float:
        """From when on it waits for what it waits for, in seconds of the monotonic clock."""

    def end(self, failure: TumblerError) -> None:
        """Have the call end with this."""


class Sender(Protocol):
    """A call whose answer is being sent."""

    @property
    def since(self) -> float:
        """Since when, in seconds of the monotonic clock."""

    def cut(self) -> None:
        """Cut the call off."""


G = TypeVar("G", Guest, Sender)


class Presence:
    """Counts the calls of one kind. For one loop's thread."""

    def __init__(self, limit: CrowdLimit, known: Callable[[str], bool] = lambda _: False) -> None:
        """``known`` tells of a connection whether somebody was let in on it."""
        self._gives_way = limit.gives_way
        self._known = known
        self._places = Allotment(limit.most, limit.most_each)
        self._refused = metrics.REFUSED.labels(limit.name)
        self.waiting: dict[Guest, None] = {}
        """Calls that wait for their message or, where the crowd gives way, for anything; the oldest first."""
        self.unread: dict[Sender, None] = {}
        """Calls that have their answer, or their refusal, and have not ended; the oldest first."""

    def __len__(self) -> int:
        return self._places.taken

    def enter(self, party: str, guest: Guest) -> Callable[[object], None]:
        """Count one more call of a party, and return what is to be called with anything once it is over.

        Raises ``Overloaded`` where there is no room, and none is made.
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
        """End all calls that have waited since then, or for longer."""
        for guest in _taken(self.waiting, since):
            guest.end(failure)

    def cut_unread(self, since: float) -> None:
        """Cut all calls off whose answer has been there since then, or for longer."""
        for sender in _taken(self.unread, since):
            sender.cut()

    def _make_room(self) -> bool:
        """End the call that has waited longest, or cut off the one that has not taken its answer for longer.

        Say whether there was one. Of those that wait, whoever is known goes behind all others instead, so that it is
        not looked at again and again: strangers go first.
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
    """Take out those who have been there since then, or for longer."""
    while guests and (oldest := next(iter(guests))).since <= since:
        del guests[oldest]
        yield oldest
