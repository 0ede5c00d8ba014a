"""Attackers with a key of their own project and one scope: whatever one customer can do to the others."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import grpc

from tests.e2e.service import seconds
from tests.siege import outsiders, wire
from tests.siege.scene import TENANT, Scene, Tally
from tests.siege.wire import DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Lines, frame, framed
from tumbler import keyformat
from tumbler.v1 import api_key_pb2, event_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

MOST_BYTES = 1_000_000
"""Bytes for the entries of one field, within the largest request that a server ever accepted, 1 MiB."""

WIDE = "😀"
"""A character of four bytes."""


async def same_scope(scene: Scene, tally: Tally) -> None:
    """Verify with one required scope 200,000 times over, and a new environment each time."""
    demand = pb.VerifyRequest(key=scene.keys["verify"], required_scopes=["a"] * 200_000).SerializeToString()

    def bodies() -> Iterator[bytes]:
        for number in itertools.count():
            yield demand + pb.VerifyRequest(environment_id=f"env-{number}").SerializeToString()

    await _send(scene, tally, "verify", "Verify", bodies())


async def known_resets(scene: Scene, tally: Tally) -> None:
    """Verify once on each of four connections, then begin calls there and cancel each at once, as fast as it goes."""
    path, key = f"{wire.SERVICE}/Verify", scene.keys["verify"]
    headers = wire.block(wire.headers(path, key))
    verify = framed(pb.VerifyRequest(key=key).SerializeToString())
    begun = frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, verify)

    def chunk(first: int) -> bytes:
        streams = range(first, first + 200, 2)
        return b"".join(
            frame(HEADERS, END_HEADERS, stream, headers) + frame(RST_STREAM, 0, stream, b"\0\0\0\x08")
            for stream in streams
        )

    chunks = lambda: itertools.chain([begun], map(chunk, itertools.count(3, 200)))  # noqa: E731 - restarted for each connection
    await outsiders.flood(scene, tally, chunks, "resets sent", 100)


async def many_demands(scene: Scene, tally: Tally) -> None:
    """Verify with 100 new required scopes of 110 characters each, 14 KB a call."""

    def bodies() -> Iterator[bytes]:
        for number in itertools.count():
            scopes = [f"{number}:{each}:".ljust(109, "s") + "x" for each in range(100)]
            yield pb.VerifyRequest(key=scene.keys["verify"], required_scopes=scopes).SerializeToString()

    await _send(scene, tally, "verify", "Verify", bodies(), in_flight=16)


async def list_states(scene: Scene, tally: Tally) -> None:
    """List with 1,000,000 states."""
    body = pb.ListRequest(states=[api_key_pb2.STATE_ACTIVE] * MOST_BYTES).SerializeToString()
    await _send(scene, tally, "read", "List", itertools.repeat(body))


async def event_types(scene: Scene, tally: Tally) -> None:
    """List events of 1,000,000 types."""
    body = pb.ListEventsRequest(types=[event_pb2.KEY_EVENT_TYPE_CREATED] * MOST_BYTES).SerializeToString()
    await _send(scene, tally, "events", "ListEvents", itertools.repeat(body))


async def create_cidrs(scene: Scene, tally: Tally) -> None:
    """Create with 100,000 networks."""
    body = pb.CreateRequest(project_id=TENANT, allowed_cidrs=["10.0.0.0"] * 100_000).SerializeToString()
    await _send(scene, tally, "create", "Create", itertools.repeat(body))


async def create_metadata(scene: Scene, tally: Tally) -> None:
    """Create with 80,000 pairs of metadata."""
    pairs = {f"{number:x}": "" for number in range(80_000)}
    body = pb.CreateRequest(project_id=TENANT, metadata=pairs).SerializeToString()
    await _send(scene, tally, "create", "Create", itertools.repeat(body))


async def create_scopes(scene: Scene, tally: Tally) -> None:
    """Create with 110,000 different scopes."""
    scopes = [f"{number:07}" for number in range(110_000)]
    body = pb.CreateRequest(project_id=TENANT, scopes=scopes).SerializeToString()
    await _send(scene, tally, "create", "Create", itertools.repeat(body))


async def update_mask(scene: Scene, tally: Tally) -> None:
    """Update with a mask of 160,000 paths."""
    api_key = api_key_pb2.ApiKey(id=keyformat.parse(scene.keys["events"]).id, name="changed")
    body = pb.UpdateRequest(api_key=api_key, update_mask={"paths": ["name"] * 160_000}).SerializeToString()
    await _send(scene, tally, "update", "Update", itertools.repeat(body))


async def fat_batches(scene: Scene, tally: Tally) -> None:
    """Make the largest key that is accepted, verify it 1,000 times in a batch, 16 batches, and read no answer."""
    async with scene.channel() as channel:
        text = (await _largest(scene, ApiKeyServiceStub(channel), tally)).key
    item = pb.VerifyRequest(key=text)
    body = framed(pb.BatchVerifyRequest(requests=[item] * 1_000).SerializeToString())
    fields = wire.headers(f"{wire.SERVICE}/BatchVerify", scene.keys["verify"])
    async with AsyncExitStack() as open_:
        for _ in range(4):
            line = await open_.enter_async_context(wire.Line(scene, tally.counts, window=0))
            for _ in range(4):
                await line.call(fields, body)
                tally.counts["batches sent"] += 1
        await asyncio.Event().wait()


async def fat_list(scene: Scene, tally: Tally) -> None:
    """Make 40 of the largest keys that are accepted: the operator's List meets them."""
    await _many_fat(scene, tally, 40)
    await asyncio.Event().wait()


async def fat_verifies(scene: Scene, tally: Tally) -> None:
    """Make up to 1,000 of the largest keys that are accepted, and verify each."""
    async with scene.channel() as channel:
        stub = ApiKeyServiceStub(channel)
        request = (await _largest(scene, stub, tally)).request
        numbers = iter(range(1_000))

        async def one_after_another() -> None:
            for _ in numbers:
                made = await _count(
                    tally, stub.Create(request, metadata=scene.credential("create"), timeout=5), "keys made"
                )
                if made:
                    asked = stub.Verify(pb.VerifyRequest(key=made.key), metadata=scene.credential("verify"), timeout=5)
                    await _count(tally, asked, "keys verified")
                else:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(one_after_another() for _ in range(4)))


async def creates(scene: Scene, tally: Tally) -> None:
    """Keep 300 Creates in flight."""
    body = pb.CreateRequest(project_id=TENANT, name="one of 300").SerializeToString()
    await _send(scene, tally, "create", "Create", itertools.repeat(body), in_flight=300)


async def lists(scene: Scene, tally: Tally) -> None:
    """Keep 64 Lists in flight that search all keys of a large project and count them."""
    words = (pb.ListRequest(search=f"zz{number}", show_total_size=True) for number in itertools.count())
    await _send(scene, tally, "read", "List", (each.SerializeToString() for each in words), in_flight=64)


async def unread_lists(scene: Scene, tally: Tally) -> None:
    """Ask for 64 pages of 1,000 keys at a time, and read no answer."""
    await _leave_unread(scene, tally, 8)


async def unread_fat_lists(scene: Scene, tally: Tally) -> None:
    """Make 200 of the largest keys that are accepted, ask for 128 pages of them at a time, and read no answer."""
    await _many_fat(scene, tally, 200)
    await _leave_unread(scene, tally, 16)


async def _leave_unread(scene: Scene, tally: Tally, each: int) -> None:
    """Request ``each`` of the longest pages at a time on each of eight connections."""
    fields = wire.headers(f"{wire.SERVICE}/List", scene.keys["read"])
    body = framed(pb.ListRequest(page_size=1_000).SerializeToString())
    await Lines(scene, tally.counts, 8, each, window=0).keep([fields], body, end=True)


async def unread_notices(scene: Scene, tally: Tally) -> None:
    """Write 200 events, watch them 2,400 times from the first on, and read nothing."""
    async with scene.channel() as channel:
        stub = ApiKeyServiceStub(channel)
        cursor = ""
        for _ in range(100):
            asked = stub.Create(pb.CreateRequest(project_id=TENANT), metadata=scene.credential("create"), timeout=5)
            if made := await _count(tally, asked, "keys made"):
                cursor = cursor or made.consistency_token
                end = pb.RevokeRequest(key_id=made.api_key.id, comment=WIDE * 1_000)
                await _count(tally, stub.Revoke(end, metadata=scene.credential("revoke"), timeout=5), "keys revoked")
    fields = wire.headers(f"{wire.SERVICE}/Watch", scene.keys["verify"])
    body = framed(pb.WatchRequest(start_cursor=cursor).SerializeToString())
    await Lines(scene, tally.counts, 24, 100, window=0).keep([fields], body, end=True)


async def heavy_verifies(scene: Scene, tally: Tally) -> None:
    """Keep 900 Verifies in flight, each of a key with 100 wildcards, and of 100 scopes that it has."""
    text, demand = await _many_scopes(scene, tally)
    body = pb.VerifyRequest(key=text, required_scopes=demand).SerializeToString()
    await _send(scene, tally, "verify", "Verify", itertools.repeat(body), in_flight=900)


async def heavy_batches(scene: Scene, tally: Tally) -> None:
    """Keep 64 batches in flight, each of 200 such items."""
    text, demand = await _many_scopes(scene, tally)
    item = pb.VerifyRequest(key=text, required_scopes=demand)
    body = pb.BatchVerifyRequest(requests=[item] * 200).SerializeToString()
    await _send(scene, tally, "verify", "BatchVerify", itertools.repeat(body), in_flight=64)


async def _many_scopes(scene: Scene, tally: Tally) -> tuple[str, list[str]]:
    names = [f"s{number}:{'x' * 10}" for number in range(100)]
    async with scene.channel() as channel:
        request = pb.CreateRequest(project_id=TENANT, scopes=[f"{name}:*" for name in names])
        asked = ApiKeyServiceStub(channel).Create(request, metadata=scene.credential("create"), timeout=5)
        made = await _count(tally, asked, "keys made")
    return str(made.key), [f"{name}:read" for name in names]


async def watch_all(scene: Scene, tally: Tally) -> None:
    """Open Watch streams until there are no more places, each with a heartbeat a second."""
    request = pb.WatchRequest(heartbeat_interval=seconds(1))
    opening = asyncio.Semaphore(50)
    async with AsyncExitStack() as open_:
        channels = [await open_.enter_async_context(scene.channel()) for _ in range(60)]

        async def watch(number: int) -> None:
            stub = ApiKeyServiceStub(channels[number % len(channels)])
            while True:
                try:
                    async with opening:
                        stream = stub.Watch(request, metadata=scene.credential("verify"))
                        await stream.read()
                    tally.counts["streams opened"] += 1
                    while await stream.read() is not grpc.aio.EOF:
                        tally.counts["messages read"] += 1
                except grpc.aio.AioRpcError as failure:
                    tally.counts[failure.code().name] += 1
                await asyncio.sleep(1)

        await asyncio.gather(*(watch(number) for number in range(6_000)))


async def watch_unread(scene: Scene, tally: Tally) -> None:
    """Open 500 Watch streams with a heartbeat a second and a flow-control window of 0."""
    fields = wire.headers(f"{wire.SERVICE}/Watch", scene.keys["verify"])
    body = framed(pb.WatchRequest(heartbeat_interval=seconds(1)).SerializeToString())
    await Lines(scene, tally.counts, 5, 100, window=0).keep([fields], body, end=True)


async def wrong_secrets(scene: Scene, tally: Tally) -> None:
    """Keep 64 Verifies of one known id in flight, each with a different wrong secret, when all digests are void."""
    parsed = keyformat.parse(scene.known)

    def bodies() -> Iterator[bytes]:
        for number in itertools.count():
            secret = f"{number:0{keyformat.SECRET_LENGTH}}"
            yield pb.VerifyRequest(key=keyformat.build(parsed.prefix, parsed.id, secret)).SerializeToString()

    await _send(scene, tally, "verify", "Verify", bodies(), in_flight=64)


async def _send(scene: Scene, tally: Tally, key: str, method: str, bodies: Iterator[bytes], in_flight: int = 8) -> None:
    """Keep ``in_flight`` calls in flight on four connections, with encoded bodies."""
    async with AsyncExitStack() as open_:
        channels = [await open_.enter_async_context(scene.channel()) for _ in range(4)]

        async def one_after_another(number: int) -> None:
            call = channels[number % len(channels)].unary_unary(f"{wire.SERVICE}/{method}")
            while True:
                tally.counts["calls sent"] += 1
                await _count(tally, call(next(bodies), metadata=scene.credential(key), timeout=10), "answered")

        await asyncio.gather(*(one_after_another(number) for number in range(in_flight)))


async def _count(tally: Tally, call: Any, what: str) -> Any:
    """Wait for a response and count it; an error counts by its status."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as failure:
        tally.counts[failure.code().name] += 1
        if failure.code() is grpc.StatusCode.UNAVAILABLE:
            await asyncio.sleep(0.05)  # not connected
        return None
    tally.counts[what] += 1
    return answer


async def _many_fat(scene: Scene, tally: Tally, number: int) -> None:
    """Create ``number`` keys of the largest accepted size."""
    async with scene.channel() as channel:
        stub = ApiKeyServiceStub(channel)
        request = (await _largest(scene, stub, tally)).request
        for _ in range(number - 1):
            await _count(tally, stub.Create(request, metadata=scene.credential("create"), timeout=5), "keys made")


class _Fat:
    def __init__(self, request: pb.CreateRequest, key: str) -> None:
        self.request, self.key = request, key


async def _largest(scene: Scene, stub: Any, tally: Tally) -> _Fat:
    """Find the largest record that the server accepts, and create a key of that size."""
    for size in (1_024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32):
        request = _fat(size)
        made = await _count(tally, stub.Create(request, metadata=scene.credential("create"), timeout=5), "keys made")
        if made:
            tally.counts["bytes of the largest record"] = made.api_key.ByteSize()
            return _Fat(request, made.key)
    tally.problems.append("no large record was accepted at all")
    raise asyncio.CancelledError


def _fat(size: int) -> pb.CreateRequest:
    """Return a request for a key with 50 pairs of metadata, each value of ``size`` wide characters."""
    chance = random.Random(size)  # noqa: S311 - no secret
    pairs = {f"{number:02}".ljust(min(64, size), "k"): WIDE * size for number in range(50)}
    scopes = [f"s{chance.randrange(10**9)}" for _ in range(10)]
    return pb.CreateRequest(project_id=TENANT, name="fat", metadata=pairs, scopes=scopes)
