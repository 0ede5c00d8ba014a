"""Proofs and records of keys that were presented lately. Never verdicts: those are decided anew on each call.

A presented key is remembered as a keyed BLAKE2b under a key of this process alone, so that neither the key nor anything
useful elsewhere stays in memory. Only proven keys enter: a spray of wrong ones evicts nothing.
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
"""How many are given while one key enters: no call pays for going through them all."""


@dataclass(slots=True)
class Entry:
    """What is known of a key id: the tag of its one right text, and its record, if that is still true."""

    tag: bytes = field(repr=False)
    key: Key | None
    memory: int = field(default=0, repr=False, compare=False)
    """About how many bytes it takes, with what is rendered of the record."""
    used: bool = field(default=False, repr=False, compare=False)
    """Whether it was asked for since it last came up for eviction."""


class ProofCache:
    """A cache by key id, of at most ``size`` keys and about ``most_memory`` bytes. Safe for use by many threads.

    The oldest goes first, unless it was asked for meanwhile: then it gets a second chance as the youngest. That keeps
    what is in use as well as an order of use would, and a look-up writes a flag where that would write a list.
    """

    def __init__(self, size: int, most_memory: int = limits.CACHE_BYTES.most) -> None:
        self._size = size
        self._most_memory = most_memory
        self._memory = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self.generation = 0
        """Goes up whenever anything is forgotten."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def memory(self) -> int:
        """About how many bytes all entries take."""
        return self._memory

    def tag(self, text: str) -> bytes:
        """Return what a presented key is remembered by."""
        keyed = self._hash.copy()
        keyed.update(text.encode())
        return keyed.digest()

    def get(self, key_id: str) -> Entry | None:
        """Return what is known of a key id."""
        entry = self._entries.get(key_id)  # a single step, which needs no lock
        if entry is not None:
            entry.used = True
        return entry

    def put(self, key: Key, tag: bytes, generation: int) -> None:
        """Remember a proof, and the record if it can still be true: nothing was forgotten since it was read.

        ``generation`` is the cache's from before the record was read.
        """
        # Measured before the lock is taken, as if the record entered.
        memory = record.memory(key)
        with self._lock:
            known = self._entries.pop(key.id, None)
            entry = Entry(tag, key, memory) if generation == self.generation else Entry(tag, None, _PROOF)
            if known is not None:
                self._memory -= known.memory
                if known.key is not None and known.key.revision > key.revision:
                    entry = known  # whoever read it was faster: nobody hears of a change and then of what was before
            self._make_room(entry.memory)
            self._entries[key.id] = entry
            self._memory += entry.memory

    def forget(self, key_ids: Iterable[str]) -> None:
        """Forget the records of these keys; their proofs stay true, since a key's secret never changes."""
        with self._lock:
            for key_id in key_ids:
                entry = self._entries.get(key_id)
                if entry is not None:
                    # Another entry, not another key in this one: who holds this one was told of it before the change.
                    self._entries[key_id] = Entry(entry.tag, None, _PROOF)
                    self._memory += _PROOF - entry.memory
            self.generation += 1

    def forget_all(self) -> None:
        """Forget everything."""
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
