"""Watch over real sockets, on an event loop in this process: the hub's messages and statuses."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tests.unit.test_feed import record
from tests.unit.test_hub import eventually
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler_server.clock import DAY, SECOND
from tumbler_server.defaults import MAX_STALENESS
from tumbler_server.errors import ReaderTooSlow, ScopeMissing, ServerStopping, Unauthenticated
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.record import Key
from tumbler_server.rpc.watch import Watching, WatchQuery
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens
from tumbler_server.streams.hub import PATIENCE, Hub

VERIFY = ("tumbler:keys:verify",)
WAIT = 30.0


@pytest.fixture
def domain(database_url: str, clock: FrozenClock) -> Iterator[Domain]:
    """Return the domain on each database, with a frozen clock."""
    store = new_store(database_url)
    domain = Domain(store, clock)
    yield domain
    domain.close()
    store.close()


class Serving:
    """A server whose one method is Watch, for one calling key, and a connection to it."""

    def __init__(self, domain: Domain, caller: Key) -> None:
        self.ended: list[BaseException] = []
        self.writing = 0
        self._caller = caller
        self._threads = ThreadPoolExecutor(2)
        self.hub = Hub(domain.store, domain.tail, domain.clock, 100, MAX_STALENESS, domain.monotonic, self._threads)
        self._watching = Watching(
            self.hub, domain.lifecycle, open_opaque_tokens(domain.store, domain.tail.lineage.mark), domain.clock
        )

    async def __aenter__(self) -> "Serving":
        self.hub.start(asyncio.get_running_loop())
        self._server = grpc.aio.server()
        watch = grpc.unary_stream_rpc_method_handler(self._watch)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Watch": watch}),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        # A small flow-control window, so that unread messages soon queue at the server.
        small = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384), ("grpc.enable_http_proxy", 0))
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", small)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hub.close()
        await self._channel.close()
        await self._server.stop(0)
        self._threads.shutdown()

    def watch(self) -> Any:
        """Open a stream."""
        return self._channel.unary_stream("/test/Watch", response_deserializer=pb.WatchResponse.FromString)(b"")

    async def _watch(self, _: bytes, context: Any) -> None:
        async def write(message: bytes) -> None:
            self.writing += 1
            try:
                await context.write(message)
            finally:
                self.writing -= 1

        try:
            await self._watching.serve(self._caller, WatchQuery("acme", None, SECOND), "192.0.2.1", write)
        except BaseException as failure:
            self.ended.append(failure)
            if isinstance(failure, asyncio.CancelledError):
                raise


def served(test: Callable[[Domain, Serving, Key], Awaitable[None]]) -> Callable[[Domain], None]:
    """Run a test on an event loop, with a server and its calling key."""

    def run(domain: Domain) -> None:
        async def whole() -> None:
            draft = Draft("acme", scopes=VERIFY, allowed_cidrs=("192.0.2.0/24",))
            caller = domain.lifecycle.create(OPERATOR, draft).key
            async with Serving(domain, caller) as serving:
                await asyncio.wait_for(test(domain, serving, caller), WAIT)

        asyncio.run(whole())

    run.__doc__ = test.__doc__
    return run


def make_noise(domain: Domain) -> None:
    """Write enough large events to fill an unread stream."""
    record(domain, 60, fields="s" * 100_000)


def update(domain: Domain, key: Key, **fields: Any) -> None:
    """Update fields of a key."""
    domain.lifecycle.update(OPERATOR, Edit(key.id, Draft("acme", **fields), tuple(fields)))


def remove(domain: Domain, key: Key) -> None:
    """Delete a key's row directly in the database, and append an event of the key, so that its streams check it."""
    delete = f"DELETE FROM api_key WHERE id = '{key.id}'"  # noqa: S608 - an id of our own
    domain.store.write_unserialized(lambda db: db.execute_sql(delete))
    change = Change(EventType.UPDATED, key.id, "acme", "", domain.clock(), Actor("", "the tests"), {})
    domain.store.write_serialized(lambda transaction: log.append(transaction, change))
    domain.tail.catch_up()


@served
async def test_from_the_first_response_to_the_last(domain: Domain, serving: Serving, caller: Key) -> None:
    """A stream starts with its position, sends each event, and is removed when its client cancels."""
    stream = serving.watch()
    first = await stream.read()
    assert (list(first.events), first.reset) == ([], False)
    made = domain.create()
    told = await stream.read()
    ((event,), cursor) = (told.events, open_opaque_tokens(domain.store, domain.tail.lineage.mark).consistency(2))
    assert (event.type, event.key_id, told.cursor) == (event_pb2.KEY_EVENT_TYPE_CREATED, made.key.id, cursor)
    stream.cancel()
    await eventually(lambda: serving.ended)
    assert (type(serving.ended[0]), len(serving.hub)) == (asyncio.CancelledError, 0)


@served
async def test_a_client_that_leaves_unread(domain: Domain, serving: Serving, caller: Key) -> None:
    """A stream whose client cancels with unread messages is removed as well."""
    stream = serving.watch()
    await stream.read()
    make_noise(domain)
    await eventually(lambda: serving.writing == 1)
    stream.cancel()
    await eventually(lambda: len(serving.hub) == 0)


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        (lambda domain, key: domain.revoke(key.id), Unauthenticated),
        (lambda domain, key: domain.lifecycle.set_active(OPERATOR, key.id, False), Unauthenticated),
        (lambda domain, key: update(domain, key, allowed_cidrs=("198.51.100.0/24",)), Unauthenticated),
        (lambda domain, key: update(domain, key, scopes=("orders:read",)), ScopeMissing),
        (remove, Unauthenticated),
    ],
    ids=["revoked", "switched off", "another network", "scope lost", "removed from the database"],
)
def test_the_callers_key_changes(domain: Domain, change: Callable[[Domain, Key], None], failure: type) -> None:
    """If the calling key changes so that a call would be refused, the stream ends with the same error."""

    async def test(domain: Domain, serving: Serving, caller: Key) -> None:
        stream = serving.watch()
        await stream.read()
        change(domain, caller)
        await eventually(lambda: serving.ended)
        assert type(serving.ended[0]) is failure

    served(test)(domain)


@served
async def test_the_callers_key_expires(domain: Domain, serving: Serving, caller: Key) -> None:
    """A stream ends when its calling key expires, by the key's current expiry."""
    stream = serving.watch()
    await stream.read()
    update(domain, caller, expire_time=domain.clock() + DAY)
    assert len((await stream.read()).events) == 1
    domain.clock.advance(DAY)
    domain.monotonic.advance(SECOND)
    domain.tail.catch_up()
    await eventually(lambda: serving.ended)
    assert type(serving.ended[0]) is Unauthenticated


@served
async def test_who_does_not_read(domain: Domain, serving: Serving, caller: Key) -> None:
    """A stream that is not read for five seconds ends; others on the same connection go on."""
    unread, other = serving.watch(), serving.watch()
    await unread.read()
    await other.read()
    make_noise(domain)
    told: list[int] = []
    while len(told) < 60:
        told += [event.revision for event in (await other.read()).events]
    assert told == list(range(2, 62))
    await eventually(lambda: serving.writing == 1)
    domain.monotonic.advance(PATIENCE + 1)
    await eventually(lambda: serving.ended)
    assert ([type(failure) for failure in serving.ended], len(serving.hub)) == ([ReaderTooSlow], 1)


@served
async def test_goodbye(domain: Domain, serving: Serving, caller: Key) -> None:
    """On shutdown, streams end at once, read or not."""
    streams = [serving.watch() for _ in range(20)]
    for stream in streams:
        await stream.read()
    make_noise(domain)
    await eventually(lambda: serving.writing == 20)
    serving.hub.say_goodbye()
    await eventually(lambda: len(serving.ended) == 20)
    assert {type(failure) for failure in serving.ended} == {ServerStopping}
