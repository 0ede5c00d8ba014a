"""Shares of what there is a number of: how much each party has of it, and all together."""

from collections import Counter


class Allotment:
    """So many in all, and so many for each party at the most. For one loop's thread.

    A party may have as many as are free, and no more than its limit: so there is room for one that has none.
    (Switches share their buffers so: Choudhury and Hahne, "Dynamic queue length thresholds", 1998.)
    """

    __slots__ = ("_most", "_of", "most_each", "taken")

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self.most_each = most_each
        self.taken = 0
        self._of: Counter[str] = Counter()

    def of(self, party: str) -> int:
        """Return how many a party has."""
        return self._of[party]

    def is_full(self, party: str) -> bool:
        """Say whether a party gets no more."""
        return self._of[party] >= min(self.most_each, self._most - self.taken)

    def take(self, party: str, number: int) -> None:
        """Give a party so many."""
        self.taken += number
        self._of[party] += number

    def give_back(self, party: str, number: int) -> None:
        """Take back from a party what it was given."""
        self.taken -= number
        self._of[party] -= number
        if not self._of[party]:
            del self._of[party]
