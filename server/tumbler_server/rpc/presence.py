"""Who is here: calls of one kind, from their headers until their answer is sent, counted by party and in all."""

import functools
from collections import Counter
from collections.abc import Callable

from tumbler_server import metrics
from tumbler_server.errors import Overloaded
from tumbler_server.rpc.lanes import RETRY
from tumbler_server.shares import CrowdLimit


class Presence:
    """Counts the calls of one kind. For one loop's thread.

    A party may hold as many places as are free, and no more than its limit: so there is room for one that has none.
    (Switches share their buffers so: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)
    """

    def __init__(self, limit: CrowdLimit) -> None:
        self._limit = limit
        self._here = 0
        self._of: Counter[str] = Counter()
        self._refused = metrics.REFUSED.labels(limit.name)

    def __len__(self) -> int:
        return self._here

    def enter(self, party: str, make_room: Callable[[], bool] | None = None) -> Callable[[object], None]:
        """Count one more call of a party, and return what is to be called with anything once it is over.

        ``make_room`` ends another call and says whether there was one: it is asked where there is no room, but for a
        party that has all of its own places. Raises ``Overloaded`` where there is no room.
        """
        here = self._of[party]
        if here >= min(self._limit.most_each, self._limit.most - self._here) and not (
            here < self._limit.most_each and make_room is not None and make_room()
        ):
            self._refused.inc()
            raise Overloaded(retry_after=RETRY)
        self._here += 1
        self._of[party] += 1
        return functools.partial(self._leave, party)

    def _leave(self, party: str, _: object) -> None:
        self._here -= 1
        self._of[party] -= 1
        if not self._of[party]:
            del self._of[party]
