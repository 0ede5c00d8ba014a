"""A timer wheel for thousands of entries. Adding, moving and removing an entry take constant time."""

from typing import Generic, TypeVar

from tumbler_server.clock import SECOND

T = TypeVar("T")

TICK = SECOND // 100
"""The wheel's resolution in microseconds. An entry may be due this much early. The wheel itself adds no delay."""


class Wheel(Generic[T]):
    """Entries and their due times. Not safe for use by several threads."""

    def __init__(self, now: int) -> None:
        self._next = now // TICK
        self._slots: dict[int, set[T]] = {}
        self._slot_of: dict[T, int] = {}

    def __len__(self) -> int:
        return len(self._slot_of)

    def put(self, entry: T, due: int) -> None:
        """Add an entry, or move it if it is already there."""
        self.drop(entry)
        slot = max(due // TICK, self._next)
        self._slots.setdefault(slot, set()).add(entry)
        self._slot_of[entry] = slot

    def drop(self, entry: T) -> None:
        """Remove an entry, if it is there."""
        slot = self._slot_of.pop(entry, None)
        if slot is not None:
            self._slots[slot].discard(entry)
            if not self._slots[slot]:
                del self._slots[slot]

    def due(self, now: int) -> list[T]:
        """Remove and return the entries that are due."""
        found: list[T] = []
        reached = now // TICK
        while self._slots and self._next <= reached:
            for entry in self._slots.pop(self._next, ()):
                del self._slot_of[entry]
                found.append(entry)
            self._next += 1
        self._next = max(self._next, reached + 1)
        return found
