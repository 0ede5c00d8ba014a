"""The yardstick: a method that does nothing, served by gRPC's own server for Python (``grpc.aio``), on uvloop.

    python -m benchmarks.yardstick

It prints its port as one JSON line, and ends at the end of stdin.
"""

import asyncio
import json
import sys

import grpc
import uvloop
from google.protobuf.empty_pb2 import Empty

NOOP = "/tumbler.benchmarks.Stock/NoOp"

_EMPTY = Empty()


async def _nothing(_: Empty, __: grpc.aio.ServicerContext) -> Empty:
    return _EMPTY


async def _serve() -> None:
    service, method = NOOP[1:].split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        _nothing, request_deserializer=Empty.FromString, response_serializer=Empty.SerializeToString
    )
    server = grpc.aio.server()
    server.add_registered_method_handlers(service, {method: handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"port": port}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(_serve())
