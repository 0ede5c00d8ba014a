"""Counts the bytes of long answers that callers have not read yet: gRPC keeps them, and so does the server."""

import functools

from tumbler_server import metrics, shares
from tumbler_server.errors import Overloaded
from tumbler_server.rpc.allotment import Allotment
from tumbler_server.rpc.ending import at_end
from tumbler_server.rpc.lanes import RETRY


class Unsent:
    """Counts the bytes of long answers, by project and in all. Use it on the loop's thread, except for ``check``."""

    def __init__(self) -> None:
        self._bytes = Allotment(shares.UNREAD.most, shares.UNREAD_OF_A_PROJECT.most)
        self._refused = metrics.REFUSED.labels("unread answers")

    def check(self, project_id: str) -> None:
        """Raise ``Overloaded`` if a project has too many unread bytes."""
        if self._bytes.is_full(project_id):
            self._refused.inc()
            raise Overloaded(RETRY, "the answers to earlier calls of the project have not been read")

    def hold(self, project_id: str, answer: bytes) -> None:
        """Count the current call's answer until it is read, if it is long. Raises what ``check`` does."""
        size = len(answer)
        if size > shares.LONG_ANSWER.most:
            self.check(project_id)
            self._bytes.take(project_id, size)
            at_end(functools.partial(self._taken, project_id, size))

    def _taken(self, project_id: str, size: int, _: object) -> None:
        self._bytes.give_back(project_id, size)
