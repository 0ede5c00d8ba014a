"""The subject of the measurements: an installation with keys, and the processes that serve it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks import yardstick
from benchmarks.load import SERVER_CORE, Unfit
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import founding
from tumbler_server.config import Installation
from tumbler_server.defaults import BCRYPT_COST
from tumbler_server.freshness.board import board_file
from tumbler_server.supervisor import reserved

SERVICE = "/tumbler.v1.ApiKeyService"

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class House:
    """An installation and its first key."""

    installation: Installation
    operator: str

    @property
    def url(self) -> str:
        """Return the URL of its database."""
        return self.installation.database_url

    @property
    def pepper_file(self) -> Path:
        """Return the path of its peppers."""
        return self.installation.pepper_file


def found(data_dir: Path, database: str = "") -> House:
    """Create an installation with the server's defaults."""
    installation = Installation(data_dir, database)
    return House(installation, founding.found(installation, BCRYPT_COST, "tmb"))


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Start processes on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores & before or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Service:
    """The processes that serve an installation, and the yardstick's process, pinned together to ``cores``."""

    def __init__(self, house: House, workers: int = 1, peppered: bool = True, cores: set[int] = SERVER_CORE) -> None:
        self.house = house
        self._open = contextlib.ExitStack()
        self._workers: list[subprocess.Popen[str]] = []
        self._yardstick: list[subprocess.Popen[str]] = []
        self._channels: dict[str, grpc.Channel] = {}
        self.target = ""
        data_dir = house.installation.data_dir
        if not peppered:
            data_dir /= "without-a-pepper"
            data_dir.mkdir(exist_ok=True)
        options = ["--data-dir", str(data_dir), "--database", house.url, "--workers", str(workers)]
        try:
            with pinned(cores):
                self._start(options, workers)
                self._yardstick = [_begin("benchmarks.yardstick")]
            self._yardstick_target = f"127.0.0.1:{_line(self._yardstick[0])['port']}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes."""
        for channel in self._channels.values():
            channel.close()
        running = [*self._workers, *self._yardstick]
        for worker in running:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in running:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()
        self._open.close()

    @property
    def pids(self) -> list[int]:
        """Return the pids of the processes that serve the installation."""
        return [worker.pid for worker in self._workers]

    def at(self, method: str) -> tuple[str, list[int]]:
        """Return the target that serves a method, and the pids whose CPU time counts."""
        if method == yardstick.NOOP:
            return self._yardstick_target, [each.pid for each in self._yardstick]
        return self.target, self.pids

    def counted(self) -> dict[str, int]:
        """Return the sums of the processes' counters and of their resident memory, in bytes; see ``server``."""
        total: dict[str, int] = {}
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            for name, number in _line(worker).items():
                total[name] = total.get(name, 0) + number
        return total

    def raw(self, method: str, request: bytes, key: str) -> bytes:
        """Call a method and return the undecoded response. Raises ``grpc.RpcError``."""
        target, _ = self.at(method)
        if target not in self._channels:
            self._channels[target] = grpc.insecure_channel(target, (("grpc.enable_http_proxy", 0),))
        call: Callable[..., bytes] = self._channels[target].unary_unary(method)
        return call(request, metadata=(("authorization", f"Bearer {key}"),), timeout=300)

    def call(self, method: str, request: Any, key: str = "") -> Any:
        """Call an RPC with a key, by default the operator's."""
        answer = getattr(pb, f"{method}Response")
        sent = key or self.house.operator
        return answer.FromString(self.raw(f"{SERVICE}/{method}", request.SerializeToString(), sent))

    def caller(self, *scopes: str, project_id: str = "acme") -> str:
        """Create a key that may call the service with these scopes."""
        made = self.call("Create", pb.CreateRequest(project_id=project_id, name="caller", scopes=scopes))
        return str(made.key)

    def _start(self, options: Sequence[str], workers: int) -> None:
        listen, shared = "127.0.0.1:0", list[int]()
        if workers > 1:
            board = board_file(workers)
            self._open.callback(os.close, board)
            listen = f"127.0.0.1:{self._open.enter_context(reserved(listen))}"
            options = [*options, "--board", str(board)]
            shared = [board]
        for number in range(workers):
            own = (*options, "--listen", listen, "--number", str(number))
            self._workers.append(_begin("benchmarks.server", *own, pass_fds=shared))
        ports = {_line(worker)["port"] for worker in self._workers}
        self.target = f"127.0.0.1:{ports.pop()}"
        assert not ports, "the workers do not share a port"


def _begin(module: str, *options: str, pass_fds: Sequence[int] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        pass_fds=pass_fds,
        env={name: value for name, value in os.environ.items() if not name.startswith("TUMBLER_")},
    )


def _line(worker: "subprocess.Popen[str]") -> dict[str, int]:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise Unfit(f"a server ended with exit code {worker.wait()}")
    answer: dict[str, int] = json.loads(line)
    return answer
