"""How much of what was found goes into one page."""

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

from tumbler_server.limits import ANSWER_BYTES

_FRAME = 5
"""Bytes around an entry of a list, at the most."""

_REST = 8 * 1024
"""Bytes of what an answer holds beside its entries, at the most: a page token."""

Entry = TypeVar("Entry")


def cut(found: Iterable[Entry], size: int, weigh: Callable[[Entry], int]) -> tuple[tuple[Entry, ...], bool]:
    """Return the first of what was found, as many as a page and an answer have room for, and whether there are more.

    One always has room: no page is empty while there are more. What does not fit is not looked at, but for the first.
    """
    entries: list[Entry] = []
    found = iter(found)
    room = ANSWER_BYTES.most - _REST
    for entry in itertools.islice(found, size):
        room -= weigh(entry) + _FRAME
        if entries and room < 0:
            return tuple(entries), True
        entries.append(entry)
    return tuple(entries), next(found, None) is not None
