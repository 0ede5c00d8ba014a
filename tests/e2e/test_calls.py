"""What calls leave behind in the server's process, and what happens to unread responses."""

import asyncio
import gc
import json
import queue
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import grpc
import pytest
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness import CHEAP
from tests.siege import wire
from tests.siege.scene import Scene
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from tumbler_server import founding, shares
from tumbler_server.config import Config, Installation
from tumbler_server.limits import Limit
from tumbler_server.server import Server, build_server

CALLS, PLACES = 50, 8
FEW = CALLS // 2

SERVICE, CHECK = "/tumbler.v1.ApiKeyService", "/grpc.health.v1.Health/Check"


def served(folder: Path) -> tuple[Server, str]:
    """Start a server in this process, and return it and the operator's key."""
    installation = Installation(folder, f"sqlite:///{folder / 'tumbler.db'}")
    operator = founding.found(installation, CHEAP, "tmb")
    server = build_server(Config(installation, listen="127.0.0.1:0", bcrypt_cost=CHEAP))
    server.start()
    return server, operator


def left_behind(folder: Path) -> dict[str, int]:
    """Make calls of each kind without garbage collection, and return how many of gRPC's call objects each leaves."""
    with ExitStack() as few:
        for crowd in ("OPEN_CROWD", "HEALTH_WATCH_CROWD"):
            small = replace(getattr(shares, crowd), most=PLACES, most_each=PLACES)
            few.enter_context(mock.patch.object(shares, crowd, small))
        server, operator = served(folder)
    metadata = (("authorization", f"Bearer {operator}"),)
    never: queue.Queue[bytes | None] = queue.Queue()
    waiting: list[grpc.Future] = []
    with ExitStack() as open_:

        def connect() -> grpc.Channel:
            own = (("grpc.use_local_subchannel_pool", 1),)
            return open_.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.port}", own))

        channel, stranger = connect(), connect()
        stub, health = ApiKeyServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        kinds: dict[str, Callable[[], object]] = {
            "Verify": lambda: stub.Verify(pb.VerifyRequest(key=operator), metadata=metadata),
            "BatchVerify": lambda: stub.BatchVerify(
                pb.BatchVerifyRequest(requests=[pb.VerifyRequest(key=operator)]), metadata=metadata
            ),
            "List": lambda: stub.List(pb.ListRequest(), metadata=metadata),
            "Check": lambda: health.Check(health_pb2.HealthCheckRequest()),
            "refused": lambda: refused(lambda: stub.Verify(pb.VerifyRequest(key=operator))),
            "failed": lambda: refused(lambda: stub.Get(pb.GetRequest(key_id="none"), metadata=metadata)),
            "Watch": lambda: left(stub.Watch(pb.WatchRequest(), metadata=metadata)),
            "health.Watch": lambda: left(health.Watch(health_pb2.HealthCheckRequest())),
            **{
                f"{method}, of which only the headers came": lambda method=method: given_up(
                    channel.stream_unary(method).future(iter(never.get, None), metadata=metadata)
                )
                for method in (f"{SERVICE}/Verify", f"{SERVICE}/Revoke", f"{SERVICE}/ClaimRotation", CHECK)
            },
            "made to make room": lambda: waiting.append(connect().stream_unary(CHECK).future(iter(never.get, None))),
            "made to make room, and reads nothing": lambda: open_.enter_context(deaf(server.port)),
            "refused late": lambda: given_up(stranger.unary_unary(f"{SERVICE}/Verify").future(b"")),
        }
        for call in kinds.values():
            call()
        gc.collect()
        gc.disable()
        found = {}
        for kind, call in kinds.items():
            if kind == "refused late":
                for _ in range(shares.PROMPT_REFUSALS.most):
                    refused(lambda: stranger.unary_unary(f"{SERVICE}/Verify")(b""))
            before = states()
            for _ in range(CALLS):
                call()
            for _ in range(50):  # the calls end by themselves, or not at all
                found[kind] = states() - before
                if found[kind] <= FEW:
                    break
                time.sleep(0.1)
        for _ in range(10_000):
            never.put(None)  # release the threads that wait to send something
    server.stop()
    return found


def refused(call: Callable[[], object]) -> None:
    """Make a call that ends with an error."""
    with pytest.raises(grpc.RpcError):
        call()


def given_up(call: grpc.Future) -> None:
    """Cancel a call after the server has received its headers."""
    time.sleep(0.005)
    call.cancel()


def left(stream: grpc.Call) -> None:
    """Read a stream's first message and cancel the stream."""
    next(iter(stream))
    stream.cancel()


def deaf(port: int) -> socket.socket:
    """Watch health without reading any response."""
    connection = socket.create_connection(("127.0.0.1", port))
    window_0 = (4).to_bytes(2, "big") + bytes(4)
    connection.sendall(wire.PREFACE + wire.frame(wire.SETTINGS, 0, 0, window_0))
    headers = wire.block(wire.headers(f"{wire.HEALTH}/Watch"))
    connection.sendall(wire.frame(wire.HEADERS, wire.END_HEADERS, 1, headers))
    connection.sendall(wire.frame(wire.DATA, wire.END_STREAM, 1, wire.framed(b"")))
    time.sleep(0.02)
    return connection


def states() -> int:
    """Return how many call objects gRPC holds."""
    return sum(type(each) is cygrpc.Call for each in gc.get_objects())


def test_nothing_waits_for_the_collector(tmp_path: Path) -> None:
    """A call's objects are freed when it ends: no reference cycle keeps them until the garbage collector runs."""
    code = f"from {__name__} import *; print(json.dumps(left_behind(Path(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(told.stdout.splitlines()[-1])  # the server logs to stdout as well
    assert len(found) == 15
    assert not {kind: number for kind, number in found.items() if number > FEW}


def test_what_is_not_read_is_cut_off(tmp_path: Path) -> None:
    """A response that is not read in time is dropped and its stream is reset, while the connection stays open."""
    with mock.patch.object(shares, "SECONDS_TO_READ", Limit("patience", 1, "seconds", "")):
        server, operator = served(tmp_path)

    async def ask() -> None:
        counts: Counter[str] = Counter()
        scene = Scene(f"127.0.0.1:{server.port}", {}, "", 0)
        async with wire.Line(scene, counts, window=0) as line:
            for method, message in (("List", pb.ListRequest()), ("Verify", pb.VerifyRequest(key=operator))):
                fields = wire.headers(f"{wire.SERVICE}/{method}", operator)
                for _ in range(5):
                    line.begin(fields, wire.framed(message.SerializeToString()), end=True)
            await asyncio.sleep(0.5)
            assert len(line.streams) == 10
            for _ in range(40):
                await asyncio.sleep(0.1)
                if not line.streams:
                    break
            assert not line.streams
            assert not line.closed
            assert counts["streams ended by the server"] == 10

    with mock.patch.object(shares, "SECONDS_TO_READ", Limit("patience", 1, "seconds", "")):
        try:
            asyncio.run(ask())
        finally:
            server.stop()
