"""Which history a revision belongs to.

When a backup has been restored, the log grows again, and new events take the revisions of the lost ones. So what is
given out to name a place in the log is not a revision alone but a point: the revision, and a mark made of its event's
hash, which covers all events up to it.
"""

import base64
import functools
import hmac
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

from tumbler_server import limits
from tumbler_server.events import log
from tumbler_server.secrets.opaque_tokens import Point, token_secret
from tumbler_server.store.database import Store

_AT_ONCE = 1_000
"""Revisions per query."""

_LENGTH = 9
"""Bytes of a mark. It tells histories apart and proves nothing: tokens that contain it are signed."""


class Lineage:
    """The marks of the log's revisions. Safe for use by many threads."""

    def __init__(self, store: Store) -> None:
        self._secret = token_secret(store)
        self._store = store
        self._newest = _Hashes(limits.NEWEST_HASHES.most)
        # Apart from the newest, so that callers who name old revisions evict none of those.
        self._older = _Hashes(limits.OLDER_HASHES.most)
        # Nearly all calls at a given time name the same few revisions.
        self.mark_of = functools.lru_cache(maxsize=64)(self._mark_of)

    def note(self, hashes: Iterable[tuple[int, bytes]]) -> None:
        """Remember the hashes of new events, by revision."""
        self._newest.put(hashes)

    def note_older(self, hashes: Iterable[tuple[int, bytes]]) -> None:
        """Remember the hashes of a few older events, by revision."""
        self._older.put(hashes)

    def mark(self, revision: int) -> str:
        """Return a revision's mark. It is empty if the event is no longer kept, or does not exist.

        Raises ``StoreUnavailable`` if the event must be read and cannot be.
        """
        found = self.recall([revision]) or self.read([revision])
        return self.mark_of(found.get(revision, b""))

    def known(self, point: Point) -> bool | None:
        """Return whether a point is in this history, or None if its event must be read to tell."""
        found = self._get(point.revision) if point.mark else b""
        return None if found is None else self._matches(point, found)

    def holds(self, points: Collection[Point]) -> list[bool]:
        """Return for each point whether it is in this history, reading events as needed. Raises ``StoreUnavailable``.

        An event that is no longer kept cannot be compared: such a point counts as one of this history.
        """
        revisions = compared(points)
        hashes = self.recall(revisions)
        if missing := revisions - hashes.keys():
            hashes |= self.read(missing)
        return self.compare(points, hashes)

    def compare(self, points: Iterable[Point], hashes: Mapping[int, bytes]) -> list[bool]:
        """Return for each point whether it is in this history, given the hashes that it has of ``compared(points)``."""
        return [self._matches(point, hashes.get(point.revision)) for point in points]

    def recall(self, revisions: Iterable[int]) -> dict[int, bytes]:
        """Return the hashes of those events that are in memory."""
        return {revision: found for revision in revisions if (found := self._get(revision)) is not None}

    def read(self, revisions: Iterable[int]) -> dict[int, bytes]:
        """Read the hashes of events, empty for those no longer kept. Revisions that the log lacks are left out."""
        wanted = list(revisions)
        found: dict[int, bytes] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            found |= log.hashes(self._store, wanted[start : start + _AT_ONCE])
        self.note_older(found.items())
        return found

    def _get(self, revision: int) -> bytes | None:
        found = self._newest.get(revision)
        return self._older.get(revision) if found is None else found

    def _matches(self, point: Point, found: bytes | None) -> bool:
        if not point.mark:
            return True
        return found is not None and (not found or self.mark_of(found) == point.mark)

    def _mark_of(self, hashed: bytes) -> str:
        # Keyed, because whoever knows an event's hash can guess the address in it.
        made = hmac.digest(self._secret, b"mark" + hashed, "sha256") if hashed else b""
        return base64.urlsafe_b64encode(made[:_LENGTH]).decode()


def compared(points: Iterable[Point]) -> set[int]:
    """Return the revisions whose hashes tell whether these points are in a history."""
    return {point.revision for point in points if point.mark}


class _Hashes:
    """The last ``most`` hashes put in, by revision."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._hashes: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self.get = self._hashes.get

    def put(self, hashes: Iterable[tuple[int, bytes]]) -> None:
        with self._lock:
            self._hashes.update(hashes)
            while len(self._hashes) > self._most:
                self._hashes.popitem(last=False)
