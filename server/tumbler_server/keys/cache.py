"""Proofs and records of keys that were presented lately. Never verdicts: those are decided anew on each call.

A presented key is remembered as a keyed BLAKE2b under a key of this process alone, so that neither the key nor anything
useful elsewhere stays in memory. Only proven keys enter: a spray of wrong ones evicts nothing.
"""

import hashlib
import secrets
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import cachetools

from tumbler_server.keys.record import Key


@dataclass(frozen=True)
class Entry:
    """What is known of a key id: the tag of its one right text, and its record, if that is still true."""

    tag: bytes = field(repr=False)
    key: Key | None


class ProofCache:
    """A bounded cache by key id, true as of one position in the log. Safe for use by many threads."""

    def __init__(self, size: int) -> None:
        self._entries: cachetools.LRUCache[str, Entry] = cachetools.LRUCache(maxsize=size)
        self._lock = threading.Lock()
        self._position = 0
        self._tag_key = secrets.token_bytes(32)

    def tag(self, text: str) -> bytes:
        """Return what a presented key is remembered by."""
        return hashlib.blake2b(text.encode(), key=self._tag_key, digest_size=32).digest()

    def get(self, key_id: str) -> Entry | None:
        """Return what is known of a key id."""
        with self._lock:
            return self._entries.get(key_id)

    def put(self, key: Key, tag: bytes, position: int) -> None:
        """Remember a proof, and the record if it can still be true: nothing was changed since it was read.

        ``position`` is the log's position before the record was read.
        """
        with self._lock:
            self._entries[key.id] = Entry(tag, key if position == self._position else None)

    def forget(self, key_ids: Iterable[str], position: int) -> None:
        """Forget the records of these keys; their proofs stay true, since a key's secret never changes."""
        with self._lock:
            for key_id in key_ids:
                entry = self._entries.pop(key_id, None)
                if entry is not None:
                    self._entries[key_id] = Entry(entry.tag, None)
            self._position = position

    def forget_all(self, position: int) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._position = position
