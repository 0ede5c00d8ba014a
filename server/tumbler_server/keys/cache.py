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

from tumbler_server.keys.record import Key

_MOST_SECOND_CHANCES = 64
"""How many are given while one key enters: no call pays for going through them all."""


@dataclass(slots=True)
class Entry:
    """What is known of a key id: the tag of its one right text, and its record, if that is still true."""

    tag: bytes = field(repr=False)
    key: Key | None
    used: bool = field(default=False, repr=False, compare=False)
    """Whether it was asked for since it last came up for eviction."""


class ProofCache:
    """A bounded cache by key id. Safe for use by many threads.

    The oldest goes first, unless it was asked for meanwhile: then it gets a second chance as the youngest. That keeps
    what is in use as well as an order of use would, and a look-up writes a flag where that would write a list.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._lock = threading.Lock()
        self._hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self.generation = 0
        """Goes up whenever anything is forgotten."""

    def __len__(self) -> int:
        return len(self._entries)

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
        with self._lock:
            known = self._entries.pop(key.id, None)
            record = key if generation == self.generation else None
            if known is None and len(self._entries) >= self._size:
                self._evict()
            elif known is not None and known.key is not None and known.key.revision > key.revision:
                record = known.key  # whoever read it was faster: nobody hears of a change and then of what was before
            self._entries[key.id] = Entry(tag, record)

    def forget(self, key_ids: Iterable[str]) -> None:
        """Forget the records of these keys; their proofs stay true, since a key's secret never changes."""
        with self._lock:
            for key_id in key_ids:
                entry = self._entries.get(key_id)
                if entry is not None:
                    # Another entry, not another key in this one: who holds this one was told of it before the change.
                    self._entries[key_id] = Entry(entry.tag, None)
            self.generation += 1

    def forget_all(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.generation += 1

    def _evict(self) -> None:
        for _ in range(_MOST_SECOND_CHANCES):
            key_id, entry = self._entries.popitem(last=False)
            if not entry.used:
                return
            entry.used = False
            self._entries[key_id] = entry
        self._entries.popitem(last=False)
