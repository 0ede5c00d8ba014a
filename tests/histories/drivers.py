"""The callers: one process that revokes, and some that verify. Each records when its calls began and returned.

They are separate processes, since waiting for a shared interpreter lock would blur the recorded instants. Every
verifier verifies every key before it is revoked, so that the servers have cached it, and from then on until it is
denied. The other calls go to the key that is being revoked, and to keys of any age.
"""

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.e2e.service import OWN_CONNECTION, PATIENCE
from tests.histories.board import Board
from tests.histories.history import PASSING, REVOKED, Freshness, Revoke, Verify, failed
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

Metadata = Sequence[tuple[str, str]]

_FRESH = 0.5
"""The share of calls that go to keys that are revoked and not yet denied, while there are any."""
_AIMED = 0.6
"""The share of the other calls that go to the key that the revoker aims at."""
_AHEAD = 0.1
"""The share of them that go to keys that are not revoked yet. The rest go to revoked keys."""
_TOKEN = 0.3
_FULL = 0.2
"""The shares of calls that demand a fresh answer, in demanding periods."""
_DEMANDING = 20
"""Keys whose revocations make a demanding period. The next three times as many make a period without demands. A server
that reads the database for one caller is fresher for all others, which would hide its own lag."""

_IMPATIENCE = 0.1
"""Seconds after which a connection's next call begins even if the last one has not returned, so that calls begin even
while a server is stopped."""
_OUTSTANDING = 100
"""Most calls of a connection that may be in flight then."""

_PAUSE = 0.02
"""Seconds between two attempts of a call that must succeed in the end."""

_board: Board


def join(board: Board) -> None:
    """Store a run's board in a new process."""
    global _board  # noqa: PLW0603 - shared memory can only be passed to a process when it starts
    _board = board


@dataclass(frozen=True)
class Revoker:
    """The process that revokes all keys, one after the other, at most ``rate`` a second.

    It begins when ``ahead`` keys are warm. It aims at a key for half of the interval between two, and then revokes it.
    Every third key is renamed at the same time, so that its record is reread from the database right before and after.
    """

    target: str
    metadata: Metadata = field(repr=False)
    key_ids: Sequence[str]
    rate: float
    ahead: int

    def run(self) -> list[Revoke]:
        """Revoke all keys, unless the run ends before. Retry while the service is unavailable.

        Raises ``RuntimeError`` for any other error status, and if the service stays unavailable.
        """
        revokes = []
        with grpc.insecure_channel(self.target, OWN_CONNECTION) as channel:
            stub = ApiKeyServiceStub(channel)
            for key, key_id in enumerate(self.key_ids):
                self._wait_until_warm(key or min(self.ahead, len(self.key_ids)) - 1)
                if _board.over:
                    break
                began = time.monotonic()
                _board.aim(key)
                time.sleep(0.5 / self.rate)
                renaming = [self._rename(stub, key_id, number) for number in range(2 if key % 3 == 0 else 0)]
                revokes.append(self._revoke(stub, key, key_id))
                for each in renaming:
                    each.exception()
                time.sleep(max(0.0, began + 1 / self.rate - time.monotonic()))
        return revokes

    def _wait_until_warm(self, key: int) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while _board.warmed <= key and not _board.over:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the verifiers have not seen key {key} valid within {2 * PATIENCE} s")
            time.sleep(0.001)

    def _rename(self, stub: ApiKeyServiceStub, key_id: str, number: int) -> "grpc.Future[Any]":
        """Begin to rename a key. If the revocation comes first, the server refuses the change."""
        request = pb.UpdateRequest(api_key={"id": key_id, "name": f"renamed {number}"})
        return stub.Update.future(request, metadata=self.metadata, timeout=PATIENCE)

    def _revoke(self, stub: ApiKeyServiceStub, key: int, key_id: str) -> Revoke:
        request = pb.RevokeRequest(key_id=key_id)
        invoked = time.monotonic_ns()
        while True:
            try:
                answer = stub.Revoke(request, metadata=self.metadata, timeout=PATIENCE)
            except grpc.RpcError as failure:
                waited = (time.monotonic_ns() - invoked) / 1e9
                if failed(failure.code()) not in PASSING or waited > PATIENCE:
                    raise RuntimeError(f"key {key} could not be revoked: {failure.code().name}") from None
                time.sleep(_PAUSE)
            else:
                returned = time.monotonic_ns()
                _board.fell(key, answer.consistency_token)
                return Revoke(key, invoked, returned)


@dataclass(frozen=True)
class Verifier:
    """A process that verifies at one server over several connections, until the run is over.

    ``number`` is its place on the board. It keeps ``ahead`` keys warm that are not revoked yet. At the end it verifies
    every ``sweepers``-th key again, so that the verifiers that share a server cover all keys.
    """

    number: int
    server: str
    target: str
    metadata: Metadata = field(repr=False)
    keys: Sequence[str] = field(repr=False)
    connections: int
    ahead: int
    sweepers: int = 1

    def run(self) -> "array[int]":
        """Verify, and return the packed records: five numbers for each call. See ``unpack``."""
        return _Verifying(self).run()

    def unpack(self, records: "array[int]") -> list[Verify]:
        """Return the calls in the packed records from ``run``."""
        numbers = iter(records)
        return [
            Verify(key, self.server, Freshness(freshness), invoked, returned, answer)
            for key, freshness, invoked, returned, answer in zip(*[numbers] * 5, strict=True)
        ]


class _Verifying:
    """The state of a running verifier."""

    def __init__(self, plan: Verifier) -> None:
        self._plan = plan
        self._random = random.Random(plan.number)  # noqa: S311 - no secret
        self._records = array("q")
        self._next_cold = 0
        self._warm = bytearray(len(plan.keys) + 1)
        self._warmed = 0
        self._revoked = 0
        self._undenied: list[int] = []

    def run(self) -> "array[int]":
        asyncio.run(self._all())
        return self._records

    async def _all(self) -> None:
        await asyncio.gather(*(self._connection(number) for number in range(self._plan.connections)))

    async def _connection(self, number: int) -> None:
        outstanding: set[asyncio.Task[int]] = set()
        async with grpc.aio.insecure_channel(self._plan.target, OWN_CONNECTION) as channel:
            stub = ApiKeyServiceStub(channel)
            while not _board.over:
                key = self._cold()
                call = asyncio.create_task(self._verify(stub, self._some() if key is None else key))
                outstanding.add(call)
                call.add_done_callback(outstanding.discard)
                await asyncio.wait([call], timeout=_IMPATIENCE)
                while len(outstanding) >= _OUTSTANDING:
                    await asyncio.wait(outstanding, return_when=asyncio.FIRST_COMPLETED)
            if outstanding:
                await asyncio.wait(outstanding)
            first = self._plan.number % self._plan.sweepers + number * self._plan.sweepers
            deadline = time.monotonic() + PATIENCE
            for key in range(first, len(self._plan.keys), self._plan.sweepers * self._plan.connections):
                while await self._verify(stub, key, Freshness.LATENCY) in PASSING and time.monotonic() < deadline:
                    await asyncio.sleep(_PAUSE)

    def _cold(self) -> int | None:
        """Return the next key that is not verified yet and will soon be revoked, or None."""
        key = self._next_cold
        if key >= min(_board.aimed + self._plan.ahead, len(self._plan.keys)):
            return None
        self._next_cold += 1
        return key

    def _some(self) -> int:
        """Choose a key: revoked ones that are not yet denied first, and among the others nearer ones more often."""
        self._undenied += range(self._revoked, _board.revoked)
        self._revoked = _board.revoked
        if self._undenied and self._random.random() < _FRESH:
            return self._random.choice(self._undenied)
        aimed, last = _board.aimed, len(self._plan.keys) - 1
        chance = self._random.random()
        if chance < _AIMED:
            return aimed
        if chance < _AIMED + _AHEAD:
            return min(aimed + self._random.randrange(self._plan.ahead), last)
        return aimed - min(aimed, int((aimed + 1) ** self._random.random()))

    async def _verify(self, stub: ApiKeyServiceStub, key: int, freshness: Freshness | None = None) -> int:
        if freshness is None:
            freshness = self._freshness(key)
        request = pb.VerifyRequest(key=self._plan.keys[key], consistency=_consistency(key, freshness))
        invoked = time.monotonic_ns()
        try:
            answer = int((await stub.Verify(request, metadata=self._plan.metadata, timeout=PATIENCE)).code)
        except grpc.aio.AioRpcError as failure:
            answer = failed(failure.code())
        self._records.extend((key, freshness, invoked, time.monotonic_ns(), answer))
        if answer == REVOKED and key in self._undenied:
            self._undenied.remove(key)
        if answer >= 0 and not self._warm[key]:
            self._warmed_up(key)
        if answer < 0:
            if not self._warm[key]:
                self._next_cold = min(self._next_cold, key)
            await asyncio.sleep(_PAUSE)
        return answer

    def _freshness(self, key: int) -> Freshness:
        if _board.aimed // _DEMANDING % 4:
            return Freshness.LATENCY
        chance = self._random.random()
        if chance < _FULL:
            return Freshness.FULL
        return Freshness.TOKEN if chance < _FULL + _TOKEN and key < _board.revoked else Freshness.LATENCY

    def _warmed_up(self, key: int) -> None:
        self._warm[key] = True
        while self._warm[self._warmed]:
            self._warmed += 1
        _board.warm(self._plan.number, self._warmed)


def _consistency(key: int, freshness: Freshness) -> pb.Consistency | None:
    if freshness is Freshness.TOKEN:
        return pb.Consistency(at_least_as_fresh=_board.token(key))
    return pb.Consistency(fully_consistent=True) if freshness is Freshness.FULL else None
