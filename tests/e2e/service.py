"""A real service: an installation made by ``init``, a server process and connections to it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.harness import CHEAP, Refused
from tumbler.v1 import api_key_pb2, event_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from tumbler_server.audit import audit
from tumbler_server.config import Installation
from tumbler_server.store.database import Transaction, open_store

T = TypeVar("T")

PATIENCE = 120.0
"""Seconds after which an expected event counts as missing. Tests wait this long only when they fail."""

OWN_CONNECTION = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
"""Channel options: no HTTP proxy, and no connection shared between channels."""

_READY = re.compile(r"tumbler-server is ready on (\S+:\d+)\n")


def eventually(happened: Callable[[], T], patience: float = PATIENCE) -> T:
    """Poll ``happened`` and return its first true value. Raise AssertionError after ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while True:
        value = happened()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen within {patience} s; the last answer was {value!r}")
        time.sleep(0.01)


def together(count: int, work: Callable[[int], T]) -> list[T | Refused]:
    """Call ``work`` with 0 … ``count`` - 1 at the same moment. Return each result or refusal."""
    gate = threading.Barrier(count)

    def run(number: int) -> T | Refused:
        gate.wait(PATIENCE)
        try:
            return work(number)
        except Refused as refused:
            return refused

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def seconds(number: float) -> Duration:
    """Return a number of seconds as a protobuf Duration."""
    return Duration(nanos=int(number % 1 * 1e9), seconds=int(number))


def plain_environment(**variables: str) -> dict[str, str]:
    """Return the environment with a low bcrypt cost and ``variables``, but no TUMBLER_* or GRPC_ENABLE_FORK_SUPPORT."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TUMBLER_") and name != "GRPC_ENABLE_FORK_SUPPORT"
    }
    return {**inherited, "TUMBLER_BCRYPT_COST": str(CHEAP), **variables}


class Client:
    """One connection to a server, with one key. If ``key`` is empty, no key is sent."""

    def __init__(self, target: str, key: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.key = key
        self.channel = (
            grpc.insecure_channel(target, OWN_CONNECTION)
            if credentials is None
            else grpc.secure_channel(target, credentials, OWN_CONNECTION)
        )
        self.stub = ApiKeyServiceStub(self.channel)
        self.metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def close(self) -> None:
        """Close the connection and every call on it."""
        self.channel.close()

    def call(self, method: str, request: Message, timeout: float = PATIENCE) -> Any:
        """Call an RPC and return the response. Raises ``Refused`` if the call ends with an error status."""
        with refusals():
            return getattr(self.stub, method)(request, metadata=self.metadata, timeout=timeout)

    def begin(self, method: str, request: Message) -> "grpc.Future[Any]":
        """Start an RPC without waiting for the response."""
        return getattr(self.stub, method).future(request, metadata=self.metadata, timeout=PATIENCE)

    def ask_reflection(self, **question: Any) -> reflection_pb2.ServerReflectionResponse:
        """Send one reflection request and return the response. By default, list the services."""
        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        request = reflection_pb2.ServerReflectionRequest(**(question or {"list_services": ""}))
        with refusals():
            (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE)
        return answer

    @contextmanager
    def idle_reflection(self, count: int) -> Iterator[None]:
        """Hold ``count`` reflection streams open that send one request and then stay idle."""
        done = threading.Event()

        def asking() -> Iterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")
            done.wait(2 * PATIENCE)

        stub = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        streams = [stub.ServerReflectionInfo(asking(), timeout=2 * PATIENCE) for _ in range(count)]
        try:
            yield
        finally:
            done.set()
            for stream in streams:
                stream.cancel()

    def create(self, **fields: Any) -> pb.CreateResponse:
        """Create a key, in project ``acme`` by default."""
        return self.call("Create", pb.CreateRequest(**{"project_id": "acme", **fields}))

    def get(self, key_id: str) -> api_key_pb2.ApiKey:
        """Read a key."""
        return self.call("Get", pb.GetRequest(key_id=key_id)).api_key

    def state(self, key_id: str) -> str:
        """Return the name of a key's state, without its prefix."""
        return api_key_pb2.State.Name(self.get(key_id).state).removeprefix("STATE_")

    def set_active(self, key_id: str, active: bool) -> api_key_pb2.ApiKey:
        """Activate or deactivate a key."""
        return self.call("SetActive", pb.SetActiveRequest(key_id=key_id, active=active)).api_key

    def revoke(self, key_id: str, **fields: Any) -> api_key_pb2.ApiKey:
        """Revoke a key."""
        return self.call("Revoke", pb.RevokeRequest(key_id=key_id, **fields)).api_key

    def rotate(self, key_id: str, grace: float | None = None, **fields: Any) -> pb.RotateResponse:
        """Rotate a key. ``grace`` is the grace period in seconds."""
        if grace is not None:
            fields["grace_period"] = seconds(grace)
        return self.call("Rotate", pb.RotateRequest(key_id=key_id, **fields))

    def verify(self, text: str, **fields: Any) -> pb.VerifyResponse:
        """Verify a key."""
        return self.call("Verify", pb.VerifyRequest(key=text, **fields))

    def verdict(self, text: str, **fields: Any) -> str:
        """Verify a key and return the name of the verify code, without its prefix."""
        return pb.VerifyCode.Name(self.verify(text, **fields).code).removeprefix("VERIFY_CODE_")

    def watch(self, timeout: float = PATIENCE, beat: float | None = None, **fields: Any) -> "Watch":
        """Open a watch stream. ``beat`` is the heartbeat interval in seconds."""
        if beat is not None:
            fields["heartbeat_interval"] = seconds(beat)
        return Watch(self.stub.Watch(pb.WatchRequest(**fields), metadata=self.metadata, timeout=timeout))

    def health(self, service: str = "") -> str:
        """Return the name of the health service's status."""
        with refusals():
            answer = health_pb2_grpc.HealthStub(self.channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE
            )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


class Watch:
    """A watch stream, read by hand. ``cursor`` is the cursor of the last response read."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.cursor = ""

    def next(self) -> pb.WatchResponse:
        """Return the next response. Raises ``Refused`` if the stream ends with an error status."""
        with refusals():
            response: pb.WatchResponse = next(self.call)
        self.cursor = response.cursor
        return response

    def opened(self) -> "Watch":
        """Read the first response, which must have no events and no reset."""
        first = self.next()
        assert not first.events
        assert not first.reset
        return self

    def events(self, count: int) -> list[event_pb2.KeyEvent]:
        """Read responses until they hold ``count`` events, and return the events."""
        found: list[event_pb2.KeyEvent] = []
        while len(found) < count:
            found += self.next().events
        assert len(found) == count
        return found

    def heartbeat(self) -> str:
        """Read up to the next heartbeat and return its cursor."""
        while True:
            response = self.next()
            if not response.events and not response.reset:
                return response.cursor

    def ended(self) -> Refused:
        """Read to the end of the stream and return its error status."""
        try:
            while True:
                self.next()
        except Refused as refused:
            return refused

    def cancel(self) -> None:
        """Cancel the stream."""
        self.call.cancel()


def alive(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def refusals() -> Iterator[None]:
    """Turn gRPC's exception into ``Refused``, which parses the details."""
    try:
        yield
    except grpc.RpcError as failure:
        raise Refused(failure.code(), failure.details() or "", failure.trailing_metadata()) from None


class Service(Client):
    """An installation, at most one process that serves it, and the operator's connection to that process.

    ``options`` are flags of ``serve``. Call ``start`` before any RPC, and ``close`` at the end.
    """

    python = sys.executable
    """The Python interpreter that runs ``tumbler_server``."""

    def __init__(self, data_dir: Path, database_url: str = "", options: Sequence[str] = (), operator: str = "") -> None:
        self.installation = Installation(data_dir, database_url)
        self.options = tuple(options)
        self.key = operator
        self.target = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._clients: list[Client] = []

    @property
    def data_dir(self) -> Path:
        """Return the installation's data folder."""
        return self.installation.data_dir

    @property
    def database_url(self) -> str:
        """Return the URL of the database."""
        return self.installation.database_url

    @property
    def where(self) -> list[str]:
        """Return the flags that name the installation."""
        database = self.installation.database
        return ["--data-dir", str(self.data_dir), *(["--database", database] if database else [])]

    @property
    def pepper_file(self) -> Path:
        """Return the path of the pepper file."""
        return self.installation.pepper_file

    @property
    def stdout(self) -> str:
        """Return what the latest process has printed so far."""
        return self._output("stdout").read_text()

    @property
    def stderr(self) -> str:
        """Return what the latest process has logged so far."""
        return self._output("stderr").read_text()

    def run(self, *arguments: str, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a ``tumbler-server`` command to its end."""
        return subprocess.run(
            [self.python, "-m", "tumbler_server", *arguments],
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
            env=plain_environment(COLUMNS="300"),
        )

    def command(self, *arguments: str, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a ``tumbler-server`` command on this installation."""
        return self.run(*arguments, *self.where, patience=patience)

    def cli(self, *arguments: str, stdin: str = "", key: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the ``tumbler`` command against this server, with the operator's key by default."""
        return subprocess.run(
            [str(Path(sys.executable).with_name("tumbler")), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=plain_environment(
                TUMBLER_ENDPOINT=self.target, TUMBLER_API_KEY=self.key if key is None else key, COLUMNS="300"
            ),
        )

    def init(self) -> "Service":
        """Run ``init`` and keep the first key."""
        founded = self.command("init")
        assert founded.returncode == 0, founded.stderr
        self.key = founded.stdout.strip()
        return self

    def start(self, *options: str, listen: str = "127.0.0.1:0") -> "Service":
        """Start a process that serves the installation, and wait until it is ready."""
        self.launch(*options, listen=listen)
        ready = eventually(lambda: _READY.search(self.stdout) or self._ended())
        assert isinstance(ready, re.Match), f"the server ended with {ready}: {self.stderr}"
        self.target = ready[1]
        self._connect_operator()
        return self

    def launch(self, *options: str, listen: str = "127.0.0.1:0") -> subprocess.Popen[bytes]:
        """Start a process that serves the installation, without waiting for it."""
        assert self._ended() or self.process is None, "it is running"
        self._starts += 1
        command = [self.python, "-m", "tumbler_server", "serve", "--listen", listen]
        with self._output("stdout").open("wb") as stdout, self._output("stderr").open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, *self.where, *self.options, *options],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=plain_environment(),
            )
        return self.process

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait until the process has exited, and return its exit code."""
        assert self.process is not None
        return self.process.wait(patience)

    def stop(self) -> int:
        """Stop the process with SIGTERM and return its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def restart(self, *options: str) -> None:
        """Stop the process and start another one, on a new port."""
        if self._ended() is None:
            assert self.stop() == 0, self.stderr
        self.start(*options)

    def beside(self) -> "Service":
        """Start another process on the same database and pepper file, with its own data folder."""
        data_dir = self.data_dir.with_name(f"{self.data_dir.name}-beside")
        other = Service(data_dir, self.database_url, (*self.options, "--pepper-file", str(self.data_dir / "pepper")))
        other.key = self.key
        return other.start()

    def connect(self, key: str | None = None) -> Client:
        """Open another connection, with the operator's key by default."""
        client = Client(self.target, self.key if key is None else key)
        self._clients.append(client)
        return client

    def caller(self, *scopes: str, project_id: str = "acme", **fields: Any) -> Client:
        """Create a key with these scopes and open a connection with it."""
        return self.connect(self.create(project_id=project_id, scopes=scopes, name="caller", **fields).key)

    def read(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read from the database directly. Parameters are written ``?``."""
        store = open_store(self.database_url)
        try:
            return store.read(sql, parameters)
        finally:
            store.close()

    def tamper(self, *statements: str) -> None:
        """Change the database directly."""
        store = open_store(self.database_url)
        try:
            for statement in statements:
                store.write_unserialized(lambda db, sql=statement: db.execute_sql(sql))
        finally:
            store.close()

    @contextmanager
    def writers_waiting(self) -> Iterator[None]:
        """Hold the write lock: changes wait, reads do not."""
        store = open_store(self.database_url)
        held, released = threading.Event(), threading.Event()

        def hold(_: Transaction) -> None:
            held.set()
            released.wait(PATIENCE)

        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(store.write_serialized, hold)
            try:
                assert held.wait(PATIENCE)
                yield
            finally:
                released.set()
            holding.result()
        store.close()

    def audit(self) -> None:
        """Fail if an audit, as ``audit verify`` runs it, finds a problem."""
        store = open_store(self.database_url)
        try:
            assert audit.run(store).problems == ()
        finally:
            store.close()

    def close(self) -> None:
        """Close all connections and stop the process."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.process is not None and self._ended() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _connect_operator(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        operator = self.connect()
        self.channel, self.stub, self.metadata = operator.channel, operator.stub, operator.metadata

    def _ended(self) -> str | None:
        code = None if self.process is None else self.process.poll()
        return None if code is None else f"exit code {code}"

    def _output(self, stream: str) -> Path:
        return self.data_dir.with_name(f"{self.data_dir.name}.{self._starts}.{stream}")
