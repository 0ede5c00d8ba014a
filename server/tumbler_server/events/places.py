"""Who may hold a stream: bounds by key, by project and for the process, so that no tenant takes another's place."""

import random
from collections import defaultdict
from typing import Generic, Protocol, TypeVar

from tumbler_server import limits
from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded


class Holder(Protocol):
    """Who holds a place."""

    @property
    def tenant(self) -> str:
        """The project of the calling key: whose share the place counts in, whatever project is watched."""

    @property
    def key_id(self) -> str:
        """The calling key."""

    @property
    def interval(self) -> int:
        """Microseconds between two heartbeats."""


H = TypeVar("H", bound=Holder)

_PRECISION = 1_000_000 * SECOND
"""Heartbeats are counted per million seconds, as whole numbers: a sum of floats drifts as streams come and go."""


class _Share(Generic[H]):
    """What one tenant holds."""

    def __init__(self) -> None:
        self.holders: dict[H, None] = {}  # in the order in which they came
        self.beats = 0


class Places(Generic[H]):
    """The places of a process, ``most`` in all."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._shares: defaultdict[str, _Share[H]] = defaultdict(_Share)
        self._keys: defaultdict[str, set[H]] = defaultdict(set)

    def of_key(self, key_id: str) -> set[H]:
        """Return who came with a key."""
        return self._keys.get(key_id, set())

    def take(self, holder: H) -> H | None:
        """Give somebody a place, and return who must go for it; that one has none any more.

        Raises ``Overloaded``.
        """
        share = self._shares.get(holder.tenant)
        held, beats = (len(share.holders), share.beats) if share else (0, 0)
        if len(self.of_key(holder.key_id)) >= limits.WATCH_KEY.most:
            raise overloaded(f"the calling key has reached its limit of {limits.WATCH_KEY.most:,} open streams")
        if held >= limits.WATCH_PROJECT.most:
            raise overloaded(f"the project has reached its limit of {limits.WATCH_PROJECT.most:,} open streams")
        if beats + _PRECISION // holder.interval > limits.WATCH_BEATS.most * 1_000_000:
            raise overloaded(
                f"the project's streams have reached their limit of {limits.WATCH_BEATS.most:,} heartbeats a second;"
                " use a longer heartbeat_interval"
            )
        leaver = self._make_room(held) if self._taken >= self._most else None
        share = self._shares[holder.tenant]
        share.holders[holder] = None
        share.beats += _PRECISION // holder.interval
        self._keys[holder.key_id].add(holder)
        self._taken += 1
        return leaver

    def leave(self, holder: H) -> None:
        """Take somebody's place away, who need not have one."""
        share = self._shares.get(holder.tenant)
        if share is None or holder not in share.holders:
            return
        del share.holders[holder]
        share.beats -= _PRECISION // holder.interval
        if not share.holders:
            del self._shares[holder.tenant]
        self._keys[holder.key_id].discard(holder)
        if not self._keys[holder.key_id]:
            del self._keys[holder.key_id]
        self._taken -= 1

    def _make_room(self, held: int) -> H:
        """Take the newest place of the tenant with the most, for a newcomer whose tenant holds so many."""
        largest = max(self._shares.values(), key=lambda share: len(share.holders))
        # With a difference of one the two would only change roles, and take the place from each other for ever.
        if held + 1 >= len(largest.holders):
            raise overloaded("the server has no room for another stream")
        newest = next(reversed(largest.holders))
        self.leave(newest)
        return newest


def overloaded(why: str) -> Overloaded:
    """Return a refusal whose advice differs from caller to caller: those refused together do not come back together."""
    return Overloaded(random.randint(SECOND, 5 * SECOND), why)  # noqa: S311 - jitter, no secret
