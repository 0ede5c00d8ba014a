"""Accidents, without an attacker: locks that are held, databases that stop, callers who have gone."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apsw
import grpc
import psutil

from tests.siege.scene import TENANT, Scene, Tally
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

PATIENCE_OF_THE_GONE = 0.04
"""Seconds after which a caller gives up, less than bcrypt takes at its default cost."""

IN_WORK = 16
"""Most calls that can have been in progress when their callers left."""


async def write_lock(scene: Scene, tally: Tally) -> None:
    """Hold SQLite's write lock from another process while ten Creates arrive."""
    connection = apsw.Connection(scene.database.removeprefix("sqlite:///"))
    connection.set_busy_timeout(10_000)  # milliseconds
    connection.execute("BEGIN IMMEDIATE")
    try:
        async with scene.channel() as channel:
            stub = ApiKeyServiceStub(channel)
            request = pb.CreateRequest(project_id=TENANT, name="waiting")
            tally.counts["calls sent"] += 10
            await asyncio.gather(*(_count(tally, scene, stub.Create, "create", request, 20) for _ in range(10)))
        await asyncio.Event().wait()
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def database_stands_still(scene: Scene, tally: Tally) -> None:
    """Stop all of PostgreSQL's processes for ten seconds (SIGSTOP)."""
    with _stopped(scene.postmaster) as number:
        tally.counts["processes stopped"] = number
        await asyncio.Event().wait()


@contextmanager
def _stopped(pid: int) -> Iterator[int]:
    """Stop PostgreSQL's first process, so that it starts no others, and then its children."""
    first = psutil.Process(pid)
    stopped = [first]
    try:
        first.send_signal(signal.SIGSTOP)
        for child in first.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGSTOP)
                stopped.append(child)
        yield len(stopped)
    finally:
        wake(pid)


def wake(pid: int) -> None:
    """Continue all processes of a PostgreSQL server."""
    first = psutil.Process(pid)
    for process in (*first.children(recursive=True), first):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


async def gone_rotates(scene: Scene, tally: Tally) -> None:
    """Rotate 20 keys with no grace and give up after 40 ms: a key must not be lost with the answer."""
    async with scene.channel() as channel:
        stub = ApiKeyServiceStub(channel)

        async def rotate() -> str:
            made = await _call(scene, stub.Create, "create", pb.CreateRequest(project_id=TENANT, name="turning"))
            request = pb.RotateRequest(key_id=made.api_key.id, grace_period={"seconds": 0})
            with contextlib.suppress(grpc.aio.AioRpcError):
                await _call(scene, stub.Rotate, "rotate", request, PATIENCE_OF_THE_GONE)
                tally.counts["answers in time"] += 1
                return ""
            tally.counts["callers who gave up"] += 1
            return str(made.key)

        given_up = [text for _ in range(20) if (text := await rotate())]
        await asyncio.sleep(1)  # for calls that are still in progress
        for text in given_up:
            answer = await _call(scene, stub.Verify, "verify", pb.VerifyRequest(key=text))
            tally.counts["lost keys"] += not answer.valid
    if lost := tally.counts["lost keys"]:
        tally.problems.append(f"{lost} keys were rotated for callers who never saw the new ones")


async def gone_creates(scene: Scene, tally: Tally) -> None:
    """Begin 100 Creates and cancel them after 40 ms: no work may begin for callers who have gone."""
    async with scene.channel() as channel:
        stub = ApiKeyServiceStub(channel)
        request = pb.CreateRequest(project_id=TENANT, environment_id="gone", name="unwanted")
        await _call(scene, stub.Get, "", pb.GetRequest())  # connected
        calls = [stub.Create(request, metadata=scene.credential("create"), timeout=10) for _ in range(100)]
        gathered = [asyncio.ensure_future(_quietly(call)) for call in calls]
        await asyncio.sleep(PATIENCE_OF_THE_GONE)
        for call in calls:
            call.cancel()
        tally.counts["creates begun"] += 100
        tally.counts["answers in time"] += sum(await asyncio.gather(*gathered))

        async def made() -> int:
            asked = pb.ListRequest(environment_id="gone", page_size=1, show_total_size=True)
            return int((await _call(scene, stub.List, "read", asked)).total_size)

        quiet = time.monotonic()
        found = await made()
        while time.monotonic() - quiet < 2:
            await asyncio.sleep(0.2)
            now = await made()
            if now != found:
                found, quiet = now, time.monotonic()
    tally.counts["keys made"] = found
    if found > IN_WORK + tally.counts["answers in time"]:
        tally.problems.append(f"{found} keys were made for callers who had gone")


async def silent_webhooks(scene: Scene, tally: Tally) -> None:
    """Cause 200 webhooks to a receiver that accepts connections and never answers."""
    open_: list[asyncio.StreamWriter] = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tally.counts["deliveries accepted"] += 1
        open_.append(writer)

    receiver = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    try:
        async with scene.channel() as channel:
            stub = ApiKeyServiceStub(channel)
            for number in range(200):
                rotation = {"interval": {"seconds": 7_200}, "webhook_url": f"http://127.0.0.1:{port}/{number}"}
                request = pb.CreateRequest(project_id=TENANT, name="called", rotation=rotation)
                made = await _count(tally, scene, stub.Create, "create", request)
                if made:
                    await _count(tally, scene, stub.Revoke, "revoke", pb.RevokeRequest(key_id=made.api_key.id))
            await asyncio.Event().wait()
    finally:
        receiver.close()
        for writer in open_:
            writer.transport.abort()


async def nameless_webhooks(scene: Scene, tally: Tally) -> None:
    """Keep 32 Creates in flight with webhooks at names that do not resolve."""
    async with scene.channel() as channel:
        stub = ApiKeyServiceStub(channel)

        async def create(number: int) -> None:
            while True:
                url = f"https://nowhere-{number}-{time.monotonic_ns()}.invalid/"
                rotation = {"interval": {"seconds": 7_200}, "webhook_url": url}
                request = pb.CreateRequest(project_id=TENANT, name="called", rotation=rotation)
                await _count(tally, scene, stub.Create, "create", request)

        await asyncio.gather(*(create(number) for number in range(32)))


async def _call(scene: Scene, method: Any, key: str, request: Any, timeout: float = 10) -> Any:
    if not key:
        return await _quietly(method(request, timeout=timeout))
    return await method(request, metadata=scene.credential(key), timeout=timeout)


async def _quietly(call: Any) -> bool:
    try:
        await call
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        return False
    return True


async def _count(tally: Tally, scene: Scene, method: Any, key: str, request: Any, timeout: float = 10) -> Any:
    try:
        answer = await _call(scene, method, key, request, timeout)
    except grpc.aio.AioRpcError as failure:
        tally.counts[failure.code().name] += 1
        return None
    tally.counts["answered"] += 1
    return answer
