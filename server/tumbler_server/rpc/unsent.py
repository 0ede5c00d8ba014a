"""Long answers that their callers have not taken yet, counted in bytes: gRPC keeps them, and so do we."""

import functools

from tumbler_server import metrics, shares
from tumbler_server.errors import Overloaded
from tumbler_server.rpc.allotment import Allotment
from tumbler_server.rpc.ending import at_end
from tumbler_server.rpc.lanes import RETRY


class Unsent:
    """Counts the bytes of long answers, by project and in all. For one loop's thread, but for ``check``."""

    def __init__(self) -> None:
        self._bytes = Allotment(shares.UNREAD.most, shares.UNREAD_OF_A_PROJECT.most)
        self._refused = metrics.REFUSED.labels("unread answers")

    def check(self, project_id: str) -> None:
        """Raise ``Overloaded`` where a project has so much unread that it gets no more."""
        if self._bytes.is_full(project_id):
            self._refused.inc()
            raise Overloaded(RETRY, "the answers to earlier calls of the project have not been read")

    def hold(self, project_id: str, answer: bytes) -> None:
        """Count the answer of the running call until it has been taken, if it is long. Raises what ``check`` does."""
        size = len(answer)
        if size > shares.LONG_ANSWER.most:
            self.check(project_id)
            self._bytes.take(project_id, size)
            at_end(functools.partial(self._taken, project_id, size))

    def _taken(self, project_id: str, size: int, _: object) -> None:
        self._bytes.give_back(project_id, size)
