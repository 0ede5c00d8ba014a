"""A cache of proofs and records of recently presented keys. It holds no verdicts: each call decides again.

A presented key is cached as a keyed BLAKE2b hash. The hash key exists only in this process, so neither the API key nor
anything useful elsewhere stays in memory. Only proven keys enter, so a flood of wrong keys evicts nothing.
"""

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tumbler_server import limits
from tumbler_server.keys import record
from tumbler_server.keys.record import Key

_PROOF = 300
"""Bytes of an entry without a record."""

_MOST_SECOND_CHANCES = 64
"""Most second chances given during one insertion, so that no call walks the whole cache."""


@dataclass(slots=True)
class Entry:
    """The cache entry of a key id: the tag of its only valid key, and its record, or None if that is stale."""

    tag: bytes = field(repr=False)
    key: Key | None
    memory: int = field(default=0, repr=False, compare=False)
    """About how many bytes the entry takes, including the record's cached rendering."""
    used: bool = field(default=False, repr=False, compare=False)
    """Whether the entry was read since it last came up for eviction."""


class ProofCache:
    """A cache by key id, of at most ``size`` keys and about ``most_memory`` bytes. Safe for use by many threads.

    Eviction is by second chance: the oldest entry goes first, unless it was read meanwhile. Then it becomes the newest.
    This keeps the entries in use as well as LRU does. A lookup only sets a flag, where LRU reorders a list.
    """

    def __init__(self, size: int, most_memory: int = limits.CACHE_BYTES.most) -> None:
        self._size = size
        self._most_memory = most_memory
        self._memory = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self.generation = 0
        """A counter that increases with every invalidation."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def memory(self) -> int:
        """About how many bytes the entries take in all."""
        return self._memory

    def tag(self, text: str) -> bytes:
        """Return the tag under which a presented key is cached."""
        keyed = self._hash.copy()
        keyed.update(text.encode())
        return keyed.digest()

    def get(self, key_id: str) -> Entry | None:
        """Return the entry of a key id, or None."""
        entry = self._entries.get(key_id)  # atomic, so it needs no lock
        if entry is not None:
            entry.used = True
        return entry

    def put(self, key: Key, tag: bytes, generation: int) -> None:
        """Cache a proof, and the record too unless it may be stale.

        ``generation`` is the cache's generation from before the record was read. If it has changed since, the record
        may be stale and is left out.
        """
        # Measure before taking the lock, assuming that the record enters.
        memory = record.memory(key)
        with self._lock:
            known = self._entries.pop(key.id, None)
            entry = Entry(tag, key, memory) if generation == self.generation else Entry(tag, None, _PROOF)
            if known is not None:
                self._memory -= known.memory
                if known.key is not None and known.key.revision > key.revision:
                    entry = known  # another thread cached a newer record: answers must not go back in time
            self._make_room(entry.memory)
            self._entries[key.id] = entry
            self._memory += entry.memory

    def forget(self, key_ids: Iterable[str]) -> None:
        """Drop the records of these keys. Their proofs stay valid, since a key's secret never changes."""
        with self._lock:
            for key_id in key_ids:
                entry = self._entries.get(key_id)
                if entry is not None:
                    # Replace the entry, do not modify it: a thread that holds the old one got it before the change.
                    self._entries[key_id] = Entry(entry.tag, None, _PROOF)
                    self._memory += _PROOF - entry.memory
            self.generation += 1

    def forget_all(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()
            self._memory = 0
            self.generation += 1

    def _make_room(self, memory: int) -> None:
        chances = _MOST_SECOND_CHANCES
        while self._entries and (len(self._entries) >= self._size or self._memory + memory > self._most_memory):
            key_id, entry = self._entries.popitem(last=False)
            if entry.used and chances:
                chances -= 1
                entry.used = False
                self._entries[key_id] = entry
            else:
                self._memory -= entry.memory
