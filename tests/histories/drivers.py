"""The callers: one process that revokes, and some that verify. Each records when its calls began and returned.

They are processes of their own, so that none waits for another's interpreter lock, which would blur the instants.
Every key is verified by every verifier before it is revoked, so that the servers have it in their caches, and at once
after that until it is denied. The other calls go to the key that is being revoked, and to keys of any age.
"""

import asyncio
import random
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from tests.e2e.service import OWN_CONNECTION, PATIENCE
from tests.histories.board import Board
from tests.histories.history import PASSING, REVOKED, Freshness, Revoke, Verify, failed
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

Metadata = Sequence[tuple[str, str]]

_FRESH = 0.5
"""The share of calls that go to keys which were revoked and not yet denied, while there are any."""
_AIMED = 0.6
"""The share of the others that go to the key in the revoker's sights."""
_AHEAD = 0.1
"""The share that go to keys which are not revoked yet; what is left goes to those that are."""
_TOKEN = 0.3
_FULL = 0.2
"""The shares of calls that demand a fresh answer, in their time."""
_DEMANDING = 20
"""That is while so many keys are revoked, and not while the next three times as many are: a server that looks at the
database for one caller knows more for all others, and so would hide how far it lags by itself."""

_IMPATIENCE = 0.1
"""Seconds after which a connection's next call is begun though the last one has not returned: calls are to be begun
even while a server stands still."""
_OUTSTANDING = 100
"""So many calls of a connection may then be waiting."""

_PAUSE = 0.02
"""Seconds between two attempts of what must succeed in the end."""

_board: Board


def join(board: Board) -> None:
    """Enter a process into a run."""
    global _board  # noqa: PLW0603 - shared memory can only be handed to a process when it starts
    _board = board


@dataclass(frozen=True)
class Revoker:
    """The one who revokes all keys, one after the other, at most ``rate`` a second.

    It begins when ``ahead`` keys are warm. The next key is aimed at for half of the time between two, then revoked.
    Every third is being renamed meanwhile, so that its record is read anew from the database right before and after.
    """

    target: str
    metadata: Metadata = field(repr=False)
    key_ids: Sequence[str]
    rate: float
    ahead: int

    def run(self) -> list[Revoke]:
        """Revoke them all, unless the run ends before; where the service cannot, try again until it can.

        Raises for any other refusal.
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

    def _rename(self, stub: ApiKeyServiceStub, key_id: str, number: int) -> grpc.Future:
        """Begin to rename a key; when it has been revoked first, that is refused."""
        request = pb.UpdateRequest(api_key={"id": key_id, "name": f"renamed {number}"})
        return stub.Update.future(request, metadata=self.metadata, timeout=PATIENCE)

    def _revoke(self, stub: ApiKeyServiceStub, key: int, key_id: str) -> Revoke:
        request = pb.RevokeRequest(key_id=key_id)
        invoked = time.monotonic_ns()
        while True:
            try:
                answer = stub.Revoke(request, metadata=self.metadata, timeout=PATIENCE)
            except grpc.RpcError as failure:
                if failed(failure.code()) not in PASSING:
                    raise RuntimeError(f"key {key} could not be revoked: {failure.code().name}") from None
                time.sleep(_PAUSE)
            else:
                returned = time.monotonic_ns()
                _board.fell(key, answer.consistency_token)
                return Revoke(key, invoked, returned)


@dataclass(frozen=True)
class Verifier:
    """One process that verifies at one server over several connections, until the run is over.

    ``number`` is its place on the board. It keeps ``ahead`` keys warm that are not revoked yet. At the end it asks once
    more for every ``sweepers``-th key, so that those who share a server have asked for all.
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
        """Verify, and return what was answered, packed: five numbers for each call. See ``unpack``."""
        return _Verifying(self).run()

    def unpack(self, records: "array[int]") -> list[Verify]:
        """Return what ``run`` returned, as the calls that they are."""
        numbers = iter(records)
        return [
            Verify(key, self.server, Freshness(freshness), invoked, returned, answer)
            for key, freshness, invoked, returned, answer in zip(*[numbers] * 5, strict=True)
        ]


class _Verifying:
    """A verifier at work."""

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
        """Return the next key that was not verified yet and will soon be revoked."""
        key = self._next_cold
        if key >= min(_board.aimed + self._plan.ahead, len(self._plan.keys)):
            return None
        self._next_cold += 1
        return key

    def _some(self) -> int:
        """Choose a key: those first of whose end this server may not know, of the others the nearer ones more often."""
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
