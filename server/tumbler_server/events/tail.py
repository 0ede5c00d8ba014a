"""Following the log: what has changed since this process last looked, told to the cache that must forget it."""

import threading
from collections.abc import Iterable
from typing import Protocol

from tumbler_server.events import log
from tumbler_server.store.database import Store

_MOST = 10_000
"""So far behind, it is cheaper to forget everything than to read what has changed."""


class Follower(Protocol):
    """What is told of changes; its methods are called in the order of the log, one at a time."""

    def forget(self, key_ids: Iterable[str], position: int) -> None:
        """Forget what is known of these keys; everything else is true as of ``position``."""

    def forget_all(self, position: int) -> None:
        """Forget what is known of every key."""


class Tail:
    """A process's place in the log.

    ``catch_up`` is called at the beginning of every answer, so that no answer is older than its call, whichever process
    or server made a change: the price is one read of a single row.
    """

    def __init__(self, store: Store, follower: Follower) -> None:
        self._store = store
        self._follower = follower
        self._lock = threading.Lock()  # never held while the database is read
        self._position = log.head(store)
        follower.forget_all(self._position)

    @property
    def position(self) -> int:
        """The revision that was reached last."""
        return self._position

    def catch_up(self) -> int:
        """Apply every change committed before this call, and return the revision reached.

        Raises ``StoreUnavailable`` where the database does not answer: nobody may then be let in.
        """
        # The place is looked at first: in the other order, another thread that went on meanwhile would make it seem
        # that the head went back.
        position = self._position
        head = log.head(self._store)
        if head == position:
            return head
        changed = log.changed_keys(self._store, position, _MOST) if position <= head else []
        reached = changed[-1][0] if changed else position
        with self._lock:
            if position <= head <= reached:
                if reached > self._position:
                    self._follower.forget([key_id for _, key_id in changed], reached)
                    self._position = reached
                return reached
            # Too far behind, or the head went back: the database was restored from a backup.
            if self._position == position:
                self._follower.forget_all(head)
                self._position = head
            return head
