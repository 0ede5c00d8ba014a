"""Page limits: how many of the entries found fit into one response."""

import itertools
from collections.abc import Callable, Iterable
from typing import TypeVar

from tumbler_server.limits import ANSWER_BYTES

_FRAME = 5
"""Most bytes around an entry of a list."""

_REST = 8 * 1024
"""Most bytes of a response besides its entries: the page token."""

T = TypeVar("T")


def cut(found: Iterable[T], size: int, weigh: Callable[[T], int]) -> tuple[tuple[T, ...], bool]:
    """Return the first entries, as many as fit into a page and a response, and whether there are more.

    The first entry always fits, so no page is empty while there are more. Reads at most one entry that does not fit.
    """
    entries: list[T] = []
    found = iter(found)
    room = ANSWER_BYTES.most - _REST
    for entry in itertools.islice(found, size):
        room -= weigh(entry) + _FRAME
        if entries and room < 0:
            return tuple(entries), True
        entries.append(entry)
    return tuple(entries), next(found, None) is not None
