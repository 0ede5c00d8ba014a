"""The honest callers, which call continuously during every attack, and the outcomes of their calls.

They run in three processes of their own, with connections, projects and keys that no attacker has. They start calls at
a fixed pace, whether or not earlier calls were answered, like many independent callers.
"""

import asyncio
import functools
import itertools
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.service import seconds
from tests.harness import Refused
from tests.siege.scene import channel
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

PACE: Mapping[str, float] = {
    "Verify": 200, "unseen": 2, "Revoke": 1, "Get": 5, "Check": 3, "List": 1, "new Watch": 1,
    "health": 1,
}  # fmt: skip
"""Calls a second. ``unseen`` is a Verify of a key that the server has not verified before."""

ROLES = ("Verify", "unseen", "Revoke", "denied", "Get", "Check", "List", "new Watch", "health", "heartbeat", "change")
"""The kinds of measured calls. ``denied`` is the Verify after a Revoke. ``change`` is the time from a Revoke's response
to its event. ``health`` is the time to the first message of a stream.
"""

CONNECTIONS = 4
"""Connections of the callers of Verify, so that each worker has some."""

BEAT = 1.0
"""Seconds between two heartbeats. One that takes more than three times as long is a failure."""

REVOKERS_PATIENCE = 15.0
"""Seconds after which a caller of Revoke gives up, later than the others."""

_INSISTING = 5.0
"""Seconds for which a throttled caller retries."""

_LAST_ANSWERS = 4.0
"""Seconds after the end in which responses may still arrive."""


class Call(NamedTuple):
    """A call: its start and duration (in seconds of the monotonic clock), and its failure, or an empty string."""

    role: str
    began: float
    took: float
    failure: str


@dataclass(frozen=True)
class Place:
    """The server and the keys of the honest callers."""

    target: str
    ca: bytes | None
    keys: Mapping[str, str] = field(repr=False)
    """The key that each role calls with."""
    warm: Sequence[str] = field(repr=False)
    """Texts of keys that are verified continuously."""
    unseen: Sequence[str] = field(repr=False)
    """Texts of keys that are verified once."""
    doomed: Sequence[tuple[str, str]] = field(repr=False)
    """Ids and texts of the keys that are revoked."""
    readable: Sequence[str]
    """Ids of keys that are read."""
    patience: float = 2.0
    """Seconds after which a caller gives up. The client libraries use this default."""


@dataclass
class Met:
    """The results of one process. ``late`` has the delays with which its calls began, in seconds."""

    calls: list[Call] = field(default_factory=list)
    revoked: dict[str, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)


_over: Event


def join(over: Event) -> None:
    """Store a run's end event in a new process."""
    global _over  # noqa: PLW0603 - an event can only be passed to a process when it starts
    _over = over


class Crew:
    """The processes of the honest callers, which are used for one run after another."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._over = context.Event()
        self._pool = ProcessPoolExecutor(len(_PROCESSES), context, join, (self._over,))
        self._running: list[Future[Met]] = []
        list(self._pool.map(get_ready, range(len(_PROCESSES))))

    def begin(self, place: Place) -> None:
        """Start the calls of all processes."""
        self._over.clear()
        self._running = [self._pool.submit(call, part, place) for part in range(len(_PROCESSES))]

    def end(self) -> Met:
        """Stop all processes' calls, and return their results."""
        self._over.set()
        total = Met()
        for part in (running.result(60) for running in self._running):
            total.calls += part.calls
            total.revoked |= part.revoked
            total.heard |= part.heard
            total.late += part.late
        self._running = []
        return total

    def close(self) -> None:
        """Stop the processes."""
        self._over.set()
        self._pool.shutdown()


def get_ready(_: int) -> None:
    """Keep a new process, with its imports done, busy until the others have started too."""
    time.sleep(0.5)


def call(part: int, place: Place) -> Met:
    """Make the calls of one of the processes until the run is over."""
    return asyncio.run(_Caller(place).run(_PROCESSES[part]))


class _Caller:
    def __init__(self, place: Place) -> None:
        self._place = place
        self._met = Met()
        self._channels: list[grpc.aio.Channel] = []
        self._stubs: dict[str, list[ApiKeyServiceStub]] = {}
        self._pending: set[asyncio.Task[None]] = set()
        self._warm, self._unseen = itertools.cycle(place.warm), iter(place.unseen)
        self._doomed, self._readable = iter(place.doomed), itertools.cycle(place.readable)

    async def run(self, roles: Sequence[str]) -> Met:
        for role in roles:
            number = CONNECTIONS if role == "Verify" else 1
            opened = [channel(self._place.target, self._place.ca) for _ in range(number)]
            self._channels += opened
            self._stubs[role] = [ApiKeyServiceStub(each) for each in opened]
        streams = [asyncio.create_task(self._watch())] if "watch" in roles else []
        await asyncio.gather(*(self._keep_pace(role) for role in roles if role in PACE))
        while not _over.is_set():
            await asyncio.sleep(0.05)
        if self._pending:
            _, unanswered = await asyncio.wait(self._pending, timeout=_LAST_ANSWERS)
            for task in unanswered:
                task.cancel()
            await asyncio.gather(*unanswered, return_exceptions=True)
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        for each in self._channels:
            await each.close()
        return self._met

    async def _keep_pace(self, role: str) -> None:
        act = self._acts[role]
        due = time.monotonic()
        while not _over.is_set():
            task = asyncio.create_task(self._note(role, functools.partial(act, self)))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
            due += 1 / PACE[role]
            rest = due - time.monotonic()
            await asyncio.sleep(max(rest, 0))
            self._met.late.append(max(0.0, time.monotonic() - due))

    async def _note(self, role: str, act: Callable[[], Awaitable[str]]) -> None:
        began = time.monotonic()
        failure = "no answer"
        try:
            failure = await act()
        except grpc.aio.AioRpcError as error:
            failure = f"{error.code().name}: {(error.details() or '')[:80]}"
        finally:
            self._met.calls.append(Call(role, began, time.monotonic() - began, failure))

    def _call(self, role: str, method: str, request: Any, number: int = 0) -> Any:
        stubs = self._stubs[role]
        metadata = (("authorization", f"Bearer {self._place.keys[role]}"),)
        patience = REVOKERS_PATIENCE if role == "Revoke" else self._place.patience
        return getattr(stubs[number % len(stubs)], method)(request, metadata=metadata, timeout=patience)

    async def _verify(self) -> str:
        answer = await self._call("Verify", "Verify", pb.VerifyRequest(key=next(self._warm)), len(self._met.calls))
        return "" if answer.valid else f"a good key is {pb.VerifyCode.Name(answer.code)}"

    async def _verify_unseen(self) -> str:
        text = next(self._unseen, "")
        answer = await self._insist("unseen", text)
        return "" if answer.valid else f"a good key is {pb.VerifyCode.Name(answer.code)}"

    async def _insist(self, role: str, text: str) -> pb.VerifyResponse:
        """Verify a key. If throttled, retry after the delay in the error, as long as a caller would."""
        until = time.monotonic() + _INSISTING
        while True:
            try:
                answer: pb.VerifyResponse = await self._call(role, "Verify", pb.VerifyRequest(key=text))
                return answer
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > until:
                    raise
                await asyncio.sleep(Refused(error.code(), "", error.trailing_metadata()).retry_delay)

    async def _revoke(self) -> str:
        key_id, text = next(self._doomed, ("", ""))
        if not key_id:
            return "there were not keys enough"
        await self._call("Revoke", "Revoke", pb.RevokeRequest(key_id=key_id))
        self._met.revoked[key_id] = time.monotonic()
        check = asyncio.create_task(self._note("denied", lambda: self._denied(text)))
        self._pending.add(check)
        check.add_done_callback(self._pending.discard)
        return ""

    async def _denied(self, text: str) -> str:
        answer = await self._insist("denied", text)
        code = pb.VerifyCode.Name(answer.code)
        return "" if code == "VERIFY_CODE_REVOKED" else f"a revoked key is {code}"

    async def _get(self) -> str:
        await self._call("Get", "Get", pb.GetRequest(key_id=next(self._readable)))
        return ""

    async def _check(self) -> str:
        """Check health as a load balancer does, on a new connection each time."""
        async with channel(self._place.target, self._place.ca) as new:
            answer = await health_pb2_grpc.HealthStub(new).Check(
                health_pb2.HealthCheckRequest(), timeout=self._place.patience
            )
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return "" if name == "SERVING" else f"health is {name}"

    async def _watch_health(self) -> str:
        """Watch health until the first message, like a client that has just connected."""
        async with channel(self._place.target, self._place.ca) as new:
            stub = health_pb2_grpc.HealthStub(new)
            stream = stub.Watch(health_pb2.HealthCheckRequest(), timeout=self._place.patience)
            return "the stream ended" if await stream.read() is grpc.aio.EOF else ""

    async def _list(self) -> str:
        answer = await self._call("List", "List", pb.ListRequest(page_size=100))
        return "" if answer.api_keys else "an empty page"

    async def _open_watch(self) -> str:
        stream = self._call("new Watch", "Watch", pb.WatchRequest(heartbeat_interval=seconds(BEAT)))
        try:
            return "the stream ended" if await stream.read() is grpc.aio.EOF else ""
        finally:
            stream.cancel()

    async def _watch(self) -> None:
        """Watch the project whose keys are revoked, and reopen the stream when it ends."""
        cursor = ""
        stub = self._stubs["watch"][0]
        metadata = (("authorization", f"Bearer {self._place.keys['watch']}"),)
        while True:
            request = pb.WatchRequest(start_cursor=cursor, heartbeat_interval=seconds(BEAT))
            stream = stub.Watch(request, metadata=metadata)
            began = time.monotonic()
            failure = "the stream ended"
            try:
                while True:
                    reading = asyncio.ensure_future(stream.read())
                    done, _ = await asyncio.wait([reading], timeout=3 * BEAT)
                    if not done:
                        failure = "no heartbeat"
                        break
                    answer = reading.result()
                    if answer is grpc.aio.EOF:
                        break
                    now = time.monotonic()
                    self._met.calls.append(Call("heartbeat", began, now - began, ""))
                    began, cursor = now, answer.cursor
                    for event in answer.events:
                        self._met.heard.setdefault(event.key_id, now)
            except grpc.aio.AioRpcError as error:
                failure = f"{error.code().name}: {(error.details() or '')[:80]}"
            finally:
                stream.cancel()
            self._met.calls.append(Call("heartbeat", began, time.monotonic() - began, failure))
            await asyncio.sleep(0.2)

    _acts: Mapping[str, Callable[["_Caller"], Awaitable[str]]] = {
        "Verify": _verify,
        "unseen": _verify_unseen,
        "Revoke": _revoke,
        "Get": _get,
        "Check": _check,
        "List": _list,
        "new Watch": _open_watch,
        "health": _watch_health,
    }


_PROCESSES: Sequence[Sequence[str]] = (
    ("Verify",),
    ("Revoke", "denied", "unseen"),
    ("Get", "Check", "List", "new Watch", "health", "watch"),
)
"""The calls of each process."""
