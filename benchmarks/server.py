"""The real server in a process of its own, with an additional method that does nothing.

    python -m benchmarks.server --data-dir DIR

``build_server`` wires it as for ``tumbler-server serve``. The no-op runs on the same gRPC server and event loop, and
needs no credential. The process prints its port as one JSON line. It then answers each line on stdin with one JSON line
of its counters, and ends at the end of stdin.
"""

import argparse
import gc
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from google.protobuf.empty_pb2 import Empty
from prometheus_client import REGISTRY

from tumbler_server import logs
from tumbler_server.config import Config, Installation
from tumbler_server.freshness.board import Board
from tumbler_server.rpc.accepting import MANY
from tumbler_server.rpc.exchange import Handler
from tumbler_server.server import build_server

NOOP = "/tumbler.benchmarks.Yardstick/NoOp"

_EMPTY = Empty()
_COUNTERS = {"bcrypt_runs": "tumbler_bcrypt_runs_total", "record_reads": "tumbler_record_reads_total"}


def counted() -> dict[str, int]:
    """Return the server's counters and its resident memory, in bytes."""
    gc.collect()  # count only memory that is in use
    resident = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert resident is not None
    counters = {name: int(REGISTRY.get_sample_value(sample) or 0) for name, sample in _COUNTERS.items()}
    return {**counters, "resident": int(resident[1]) * 1024}


class Yardstick(Handler):
    """A service with one method, which does nothing."""

    paths: ClassVar[Mapping[str, int]] = {NOOP: MANY}

    def service(self, _: object) -> Handler:
        """Return the handler of a call."""
        return self

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Do nothing."""
        Empty.FromString(await context.read())
        return _EMPTY.SerializeToString()


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--database", default="")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--workers", type=int, default=1, help="how many such processes share the port")
    parser.add_argument("--number", type=int, default=0, help="which of them this is")
    parser.add_argument("--board", type=int, help="the descriptor of what they share")
    arguments = parser.parse_args()
    logs.configure("warning", "json")
    installation = Installation(arguments.data_dir, arguments.database)
    config = Config(installation, listen=arguments.listen, workers=arguments.workers)
    board = None if arguments.board is None else Board(arguments.board, arguments.number)
    server = build_server(config, board=board, services=(Yardstick(),))
    server.start()
    print(json.dumps({"port": server.port}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(counted()), flush=True)
    server.stop()


if __name__ == "__main__":
    main()
