"""Tools of the tests: a clock that stands still, and a whole service in this process."""

import asyncio
import copy
import dataclasses
import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from tumbler import keyformat
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import founding
from tumbler_server.clock import SECOND
from tumbler_server.config import Config, Installation
from tumbler_server.keys import evidence
from tumbler_server.rpc.engine import Engine
from tumbler_server.rpc.loop import LoopThread
from tumbler_server.rpc.serving import Details
from tumbler_server.scheduler import timekeeping
from tumbler_server.scheduler.scheduler import build_scheduler
from tumbler_server.server import SERVICE, build_core
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import EventRow

CHEAP = 4
"""The bcrypt cost of tests: some 2 ms."""

_NAMES = itertools.count()


class FrozenClock:
    """A clock that stands still until ``advance`` is called. It starts at 2030-01-01."""

    def __init__(self, now: int = 1_893_456_000 * SECOND) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, microseconds: int) -> None:
        self.now += microseconds


def at(instant: int) -> Timestamp:
    """Return an instant, in microseconds, as a message."""
    message = Timestamp()
    message.FromMicroseconds(instant)
    return message


def lasting(span: int) -> Duration:
    """Return a span, in microseconds, as a message."""
    message = Duration()
    message.FromMicroseconds(span)
    return message


def forged(text: str) -> str:
    """Return a key with the prefix and id of another, a wrong secret, and a matching checksum."""
    parsed = keyformat.parse(text)
    return keyformat.build(parsed.prefix, parsed.id, parsed.secret[::-1])


def retell(store: Store) -> None:
    """Make each key's last event match its row, after rows were changed by hand for calls to use."""

    def work(transaction: Transaction) -> None:
        key_ids = [key_id for (key_id,) in transaction.read("SELECT id FROM api_key")]
        for row in evidence.rows(transaction.read, key_ids):
            told = EventRow.update(record=evidence.digest(row.columns))
            transaction.run(told.where(EventRow.revision == row.revision))

    store.write_serialized(work)


class Refused(Exception):
    """A call that ended with an error status, with its parsed details."""

    def __init__(self, code: grpc.StatusCode, message: str, metadata: Any) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.status = status_pb2.Status()
        for name, value in metadata or ():
            if name == "grpc-status-details-bin":
                self.status.ParseFromString(value)

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """Return the ErrorInfo that every error carries."""
        return self._detail(error_details_pb2.ErrorInfo())

    @property
    def reason(self) -> str:
        """Return the reason in ErrorInfo."""
        return self.info.reason

    @property
    def fields(self) -> list[str]:
        """Return the paths of the fields that BadRequest names."""
        return [violation.field for violation in self._detail(error_details_pb2.BadRequest()).field_violations]

    @property
    def violations(self) -> list[tuple[str, str]]:
        """Return the violations in BadRequest: the paths of fields, and the rule that each breaks."""
        found = self._detail(error_details_pb2.BadRequest()).field_violations
        return [(violation.field, violation.description) for violation in found]

    @property
    def retry_delay(self) -> float:
        """Return the delay in RetryInfo, in seconds."""
        return self._detail(error_details_pb2.RetryInfo()).retry_delay.ToTimedelta().total_seconds()

    def _detail(self, message: Any) -> Any:
        for detail in self.status.details:
            if detail.Unpack(message):
                return message
        raise AssertionError(f"no {message.DESCRIPTOR.name} in the details of {self}")


class Aborted(Exception):
    """The exception that ``abort`` raises, as gRPC's does."""


class Context:
    """The context that gRPC passes to the handler of a call, as far as the service uses it."""

    def __init__(self, peer: str, message: bytes, metadata: Any = (), left: float | None = None) -> None:
        self._peer = peer
        self._message = message
        self._metadata = metadata
        self._left = left
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.trailing: Any = ()
        self.written: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return self._message

    async def write(self, message: bytes) -> None:
        self.written.put_nowait(message)

    async def send_initial_metadata(self, metadata: Any) -> None:
        """Drop the headers of the response."""

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return self._peer

    def time_remaining(self) -> float | None:
        return self._left

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailing = metadata

    def cut(self) -> None:
        """Do nothing, in place of a reset of the stream."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        raise Aborted


_loop: list[LoopThread] = []


def on_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on the event loop that all services of this process share, and return its result."""
    if not _loop:
        _loop.append(LoopThread())
    return _loop[0].run(work)


async def serve(engine: Engine, method: str, request: bytes, metadata: Any, peer: str) -> bytes:
    """Make an engine serve a call as gRPC would, and return the response, or the first response of a stream.

    Raises ``Refused`` if it ends with an error status before.
    """
    details = Details(
        f"/{SERVICE.full_name}/{method}", metadata, sum(len(name) + len(value) for name, value in metadata)
    )
    call = engine.service(details)
    assert call is not None
    context = Context(peer, request, metadata)
    try:
        if not call.response_streaming:
            return bytes(await call.stream_unary(None, context))
        streaming = asyncio.ensure_future(call.stream_stream(None, context))
        first = asyncio.ensure_future(context.written.get())
        await asyncio.wait((streaming, first), return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            first.cancel()
            await streaming
        streaming.cancel()
        return await first
    except Aborted:
        raise Refused(context.code, context.details, context.trailing) from None


class World:
    """A service in this process, on a database of its own. Calls reach it as from gRPC, by default as the operator."""

    def __init__(self, database_url: str, data_dir: Path, clock: FrozenClock, **settings: Any) -> None:
        self.clock = clock
        self.monotonic = FrozenClock(0)
        self.peer = "ipv4:127.0.0.1:40000"
        self.installation = Installation(data_dir, database_url)
        self.config = Config(self.installation, bcrypt_cost=CHEAP, **settings)
        self.operator = founding.found(self.installation, CHEAP, "tmb")
        self.open()

    def open(self) -> None:
        """Wire the service. Its look-ups find no addresses."""
        self.core = build_core(self.config, self.clock, monotonic=self.monotonic, look_up=lambda _: [])
        self.scheduler = build_scheduler(
            self.config, f"test/{next(_NAMES)}", self.clock, self.monotonic, look_up=lambda _: []
        )
        on_loop(self._start())

    async def _start(self) -> None:
        self.core.hub.start(asyncio.get_running_loop())

    def turn(self) -> None:
        """Make the service do all timed work that is due, webhooks included. Its clock is trusted first."""
        timekeeping.trust(self.core.store, self.clock())
        while self.scheduler.acting.turn():
            self.scheduler.dispatch.drain()

    def let_lapse(self) -> None:
        """Let enough time pass that an unconfirmed position in the log is stale."""
        self.monotonic.advance(self.config.max_staleness + 1)

    def close(self) -> None:
        """Stop the service. Its database stays."""
        on_loop(self.core.hub.close())
        self.scheduler.close()
        self.core.close()

    def reopen(self, **settings: Any) -> None:
        """Stop the service, and start it again on the same database with other settings."""
        self.close()
        self.config = dataclasses.replace(self.config, **settings)
        self.open()

    def call(self, method: str, request: Message | bytes, key: str | None = None, metadata: Any = None) -> Any:
        """Call an RPC with a key (by default the operator's; "" sends none), and return the response.

        Raises ``Refused`` if it ended with an error status.
        """
        sent = self.operator if key is None else key
        if metadata is None:
            metadata = (("authorization", f"Bearer {sent}"),) if sent else ()
        sent_bytes = request if isinstance(request, bytes) else request.SerializeToString()
        answer = on_loop(serve(self.core.engine, method, sent_bytes, metadata, self.peer))
        return GetMessageClass(SERVICE.methods_by_name[method].output_type).FromString(answer)

    def refused(self, method: str, request: Message | bytes, key: str | None = None, metadata: Any = None) -> Refused:
        """Call an RPC that must end with an error status, and return the error."""
        try:
            self.call(method, request, key, metadata)
        except Refused as refused:
            return refused
        raise AssertionError(f"{method} was not refused")

    def twin(self) -> "World":
        """Start a second service on the same database, like another server. The caller must close it."""
        other = copy.copy(self)
        other.open()
        return other

    def create(self, key: str | None = None, **fields: Any) -> pb.CreateResponse:
        """Create a key, by default in project ``acme``."""
        return self.call("Create", pb.CreateRequest(**{"project_id": "acme", **fields}), key)

    def caller(self, *scopes: str, project_id: str = "acme", **fields: Any) -> str:
        """Create a key that may call the service with these scopes, and return its text."""
        return str(self.create(project_id=project_id, scopes=scopes, name="caller", **fields).key)

    def verify(self, text: str, key: str | None = None, **fields: Any) -> pb.VerifyResponse:
        """Verify a key."""
        return self.call("Verify", pb.VerifyRequest(key=text, **fields), key)

    def verdict(self, text: str, key: str | None = None, **fields: Any) -> str:
        """Verify a key and return the name of the code, without its prefix."""
        code = self.verify(text, key, **fields).code
        return pb.VerifyCode.Name(code).removeprefix("VERIFY_CODE_")

    def get(self, key_id: str, key: str | None = None) -> api_key_pb2.ApiKey:
        """Read a key."""
        return self.call("Get", pb.GetRequest(key_id=key_id), key).api_key

    def page(self, key: str | None = None, **fields: Any) -> pb.ListResponse:
        """Read a page of keys."""
        return self.call("List", pb.ListRequest(**fields), key)

    def update(self, key_id: str, *mask: str, key: str | None = None, **fields: Any) -> pb.UpdateResponse:
        """Change the fields of a key that the mask names. Without a mask, change those that are given."""
        api_key = api_key_pb2.ApiKey(id=key_id, **fields)
        update_mask = {"paths": mask} if mask else None
        return self.call("Update", pb.UpdateRequest(api_key=api_key, update_mask=update_mask), key)

    def set_active(self, key_id: str, active: bool, key: str | None = None) -> pb.SetActiveResponse:
        """Activate or deactivate a key."""
        return self.call("SetActive", pb.SetActiveRequest(key_id=key_id, active=active), key)

    def revoke(self, key_id: str, key: str | None = None, **fields: Any) -> pb.RevokeResponse:
        """Revoke a key."""
        return self.call("Revoke", pb.RevokeRequest(key_id=key_id, **fields), key)

    def rotate(self, key_id: str, key: str | None = None, **fields: Any) -> pb.RotateResponse:
        """Rotate a key."""
        return self.call("Rotate", pb.RotateRequest(key_id=key_id, **fields), key)

    def events(self) -> list[EventRow]:
        """Return the whole log, oldest first."""
        return list(self.core.store.select(EventRow.select().order_by(EventRow.revision)))
