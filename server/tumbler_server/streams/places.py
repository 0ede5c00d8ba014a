"""Limits on open streams by key, by project and for the process, so that no tenant crowds out another."""

import random
from collections import defaultdict
from typing import Generic, Protocol, TypeVar

from tumbler_server import limits
from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded


class Holder(Protocol):
    """A stream that holds a place."""

    @property
    def tenant(self) -> str:
        """The project of the calling key. The place counts against its share, whatever project is watched."""

    @property
    def key_id(self) -> str:
        """The calling key."""

    @property
    def interval(self) -> int:
        """Microseconds between two heartbeats."""


H = TypeVar("H", bound=Holder)

_PRECISION = 1_000_000 * SECOND
"""Heartbeats are counted per million seconds, in integers. A sum of floats would drift as streams come and go."""


class _Share(Generic[H]):
    """The places of one tenant."""

    def __init__(self) -> None:
        self.holders: dict[H, None] = {}  # in order of arrival
        self.beats = 0


class Places(Generic[H]):
    """The places of a process, at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._shares: defaultdict[str, _Share[H]] = defaultdict(_Share)
        self._keys: defaultdict[str, set[H]] = defaultdict(set)

    def of_key(self, key_id: str) -> set[H]:
        """Return the holders with this key."""
        return self._keys.get(key_id, set())

    def take(self, holder: H) -> H | None:
        """Give a holder a place, and return the holder evicted for it, if any. Raises ``Overloaded``."""
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
        """Free a holder's place, if it has one."""
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
        """Evict the newest holder of the largest tenant for a newcomer whose tenant holds ``held`` places."""
        largest = max(self._shares.values(), key=lambda share: len(share.holders))
        # With a difference of one, the two tenants would swap roles and evict each other forever.
        if held + 1 >= len(largest.holders):
            raise overloaded("the server has no room for another stream")
        newest = next(reversed(largest.holders))
        self.leave(newest)
        return newest


def overloaded(why: str) -> Overloaded:
    """Return an ``Overloaded`` with a random retry delay, so that callers refused together do not retry together."""
    return Overloaded(random.randint(SECOND, 5 * SECOND), why)  # noqa: S311 - jitter, no secret
