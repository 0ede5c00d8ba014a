"""Shares of a countable resource: how much each party has of it, and how much all of them have."""

from collections import Counter


class Allotment:
    """A number of places, and a limit for each party. Use it on the loop's thread only.

    A party may have as many places as are free, and at most its limit, so there is room for a party that has none.
    (Switches share their buffers in this way: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)
    """

    __slots__ = ("_most", "_of", "most_each", "taken")

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self.most_each = most_each
        self.taken = 0
        self._of: Counter[str] = Counter()

    def of(self, party: str) -> int:
        """Return how many places a party has."""
        return self._of[party]

    def is_full(self, party: str) -> bool:
        """Return whether a party may take no more places."""
        return self._of[party] >= min(self.most_each, self._most - self.taken)

    def take(self, party: str, number: int) -> None:
        """Give a party this many places."""
        self.taken += number
        self._of[party] += number

    def give_back(self, party: str, number: int) -> None:
        """Take this many places back from a party."""
        self.taken -= number
        self._of[party] -= number
        if not self._of[party]:
            del self._of[party]
