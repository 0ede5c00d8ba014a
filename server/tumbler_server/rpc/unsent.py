"""Long answers that their callers have not taken yet, counted in bytes: gRPC keeps them, and so do we."""

import functools
from collections import Counter

from tumbler_server import metrics, shares
from tumbler_server.errors import Overloaded
from tumbler_server.rpc.ending import at_end
from tumbler_server.rpc.lanes import RETRY


class Unsent:
    """Counts the bytes of long answers, by project and in all. For one loop's thread, but for ``check``.

    A project may have as many as are free, and no more than its limit, as with ``Presence``.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._of: Counter[str] = Counter()
        self._refused = metrics.REFUSED.labels("unread answers")

    def check(self, project_id: str) -> None:
        """Raise ``Overloaded`` where a project has so much unread that it gets no more."""
        if self._of[project_id] >= min(shares.UNREAD_OF_A_PROJECT.most, shares.UNREAD.most - self._bytes):
            self._refused.inc()
            raise Overloaded(RETRY, "the answers to earlier calls of the project have not been read")

    def hold(self, project_id: str, answer: bytes) -> None:
        """Count the answer of the running call until it has been taken, if it is long. Raises what ``check`` does."""
        size = len(answer)
        if size > shares.LONG_ANSWER.most:
            self.check(project_id)
            self._bytes += size
            self._of[project_id] += size
            at_end(functools.partial(self._taken, project_id, size))

    def _taken(self, project_id: str, size: int, _: object) -> None:
        self._bytes -= size
        self._of[project_id] -= size
        if not self._of[project_id]:
            del self._of[project_id]
