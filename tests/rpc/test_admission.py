"""The checks that a call passes before any work, and their order."""

import asyncio
import contextlib
import itertools
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.harness import CHEAP, Aborted, Context, Refused, World, on_loop
from tests.rpc.test_callers import POLICY, request_for
from tests.unit.test_lanes import PATIENCE, soon, turns
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import calls, founding, limits, server, shares
from tumbler_server.config import Config, Installation
from tumbler_server.errors import SetupError
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.webhook_admin import WebhookAdmin
from tumbler_server.rpc import auth, engine, exchange
from tumbler_server.rpc.serving import Details
from tumbler_server.secrets.secret import generate
from tumbler_server.server import SERVICE, build_server
from tumbler_server.verify.verifier import Verifier

METHODS = [*POLICY, "ClaimRotation"]

HEADERS = 5_000
"""The size of a call's headers in bytes."""

CHANGES = ["Create", "Update", "SetActive", "Revoke", "Rotate"]


class Slow(Context):
    """A gRPC context whose messages arrive when the test says so."""

    def __init__(self, peer: str, metadata: Any, left: float | None) -> None:
        super().__init__(peer, b"", metadata, left)
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = 0
        """How often the server has asked for a message."""

    async def read(self) -> Any:
        self.reads += 1
        return await self.sent.get()


class Call:
    """A call whose headers have arrived."""

    def __init__(self, world: World, method: str, key: str | None = None, left: float | None = None) -> None:
        self._world = world
        self._method = method
        self._key = world.operator if key is None else key
        self._left = left
        on_loop(self._begin())

    @property
    def reads(self) -> int:
        """Return how often the server has asked for a message."""
        return self.context.reads

    def send(self, *messages: Any) -> "Call":
        """Deliver messages."""

        async def send() -> None:
            for message in messages:
                self.context.sent.put_nowait(message.SerializeToString() if isinstance(message, Message) else message)
            await turns()

        on_loop(send())
        return self

    def answer(self) -> Any:
        """Return the response. Raises ``Refused`` if the call ends with an error status."""
        answer = on_loop(self._end())
        return GetMessageClass(SERVICE.methods_by_name[self._method].output_type).FromString(answer)

    def refused(self) -> Refused:
        """Return the refusal of the call."""
        with pytest.raises(Refused) as raised:
            self.answer()
        return raised.value

    def cancel(self) -> None:
        """Cancel the call."""

        async def cancel() -> None:
            self.task.cancel()
            await asyncio.wait((self.task,))

        on_loop(cancel())

    async def _begin(self) -> None:
        metadata = (("authorization", f"Bearer {self._key}"),) if self._key else ()
        self.context = Slow(self._world.peer, metadata, self._left)
        details = Details(f"/{SERVICE.full_name}/{self._method}", metadata, HEADERS)
        call = self._world.core.engine.service(details)
        assert call is not None
        serve = call.stream_stream if call.response_streaming else call.stream_unary
        self.answered = asyncio.Event()
        """Set when the response is ready."""
        self.taken = asyncio.Event()
        """Set when the caller has read the response."""

        async def as_grpc_does() -> bytes:
            answer = await serve(None, self.context)
            self.answered.set()
            await self.taken.wait()
            return bytes(answer)

        self.task = asyncio.ensure_future(as_grpc_does())
        await soon(lambda: self.task.done() or self.context.reads > 0)

    async def _end(self) -> bytes:
        self.taken.set()
        try:
            return await asyncio.wait_for(self.task, PATIENCE)
        except Aborted:
            raise Refused(self.context.code, self.context.details, self.context.trailing) from None


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the clock of admission, frozen until the test sets ``now``."""
    clock = SimpleNamespace(now=1_000.0)
    clock.monotonic = lambda: clock.now
    for module in (engine, exchange, calls):
        monkeypatch.setattr(module, "time", clock)
    return clock


def sweep(world: World) -> None:
    """Run the engine's check for slow callers once."""

    async def once() -> None:
        sweeping = asyncio.ensure_future(world.core.engine.sweep())
        await turns()
        sweeping.cancel()
        await turns()

    on_loop(once())


class TestOrder:
    """Each check is cheaper than the work it guards: the first failure answers, and no later check runs."""

    def test_credential_before_body(self, world: World) -> None:
        """An unauthenticated call is refused by its headers, and the server reads no message."""
        for method, key in itertools.product(POLICY, ("", "garbage", generate("tmb").text)):
            call = Call(world, method, key)
            assert call.refused().code is grpc.StatusCode.UNAUTHENTICATED
            assert call.reads == 0

    def test_policy_before_body(self, world: World) -> None:
        """A call without the scope is refused by its headers, whether or not the key is cached."""
        key = world.caller("orders:read")
        for method in POLICY:
            call = Call(world, method, key)
            assert call.refused().reason == "SCOPE_MISSING"
            assert call.reads == 0

    def test_policy_before_size(self, world: World) -> None:
        """A call without the scope does not learn that its request is too large."""
        call = Call(world, "Get", world.caller("orders:read")).send(b"x" * 1_000_000)
        assert call.refused().reason == "SCOPE_MISSING"

    def test_size_before_parse(self, world: World) -> None:
        """A request over the size limit is not decoded, and the error names both sizes; one at the limit is decoded."""
        for method in METHODS:
            most = engine.METHODS[method].size.most
            refused = Call(world, method).send(b"\xff" * (most + 1)).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
            assert dict(refused.info.metadata) == {"bytes": str(most + 1), "most": str(most)}
            refused = Call(world, method).send(b"\xff" * most).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")

    def test_sizes(self) -> None:
        """Verify and BatchVerify have size limits of their own; all other methods share the limit for a record."""
        sizes = {method: row.size.most for method, row in engine.METHODS.items()}
        assert sizes.pop("Verify") == limits.VERIFY_BYTES.most
        assert sizes.pop("BatchVerify") == limits.BATCH_BYTES.most
        assert set(sizes.values()) == {limits.REQUEST_BYTES.most}

    def test_counts_before_rules(self, world: World) -> None:
        """A list that is too long is refused as a whole, and its entries are not checked."""
        refused = Call(world, "Create").send(pb.CreateRequest(name="x", scopes=["no scope!"] * 101)).refused()
        assert refused.fields == ["scopes"]
        assert "at most 100 entries" in refused.message
        refused = Call(world, "Get").send(pb.GetRequest(key_id="k" * 100_000)).refused()
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["key_id"])

    def test_a_place_before_the_body(self, world: World) -> None:
        """A call beyond a project's limit of calls in flight is refused before the server reads its message.

        Other projects and the project's other kinds of calls go on: above all, it can stop a key.
        """
        key, other = world.caller("tumbler:*"), world.caller("tumbler:*", project_id="globex")
        key_id = world.create().api_key.id
        waiting = [Call(world, "Create", key) for _ in range(shares.CALL_CROWD.most_each)]
        refused_call = Call(world, "Get", key)
        refused = refused_call.refused()
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refused.retry_delay > 0
        assert refused_call.reads == 0
        Call(world, "List", other).send(pb.ListRequest()).answer()
        Call(world, "Verify", key).send(pb.VerifyRequest(key=key)).answer()
        Call(world, "SetActive", key).send(pb.SetActiveRequest(key_id=key_id, active=False)).answer()
        Call(world, "Revoke", key).send(pb.RevokeRequest(key_id=key_id)).answer()
        waiting.pop().cancel()
        assert Call(world, "Get", key).send(pb.GetRequest(key_id=key_id)).answer().api_key.id == key_id
        for call in waiting:
            call.cancel()

    def test_a_place_without_a_key(self, world: World) -> None:
        """Calls without a key are limited per connection."""
        waiting = [Call(world, "ClaimRotation", "") for _ in range(shares.OPEN_CROWD.most_each)]
        assert Call(world, "ClaimRotation", "").refused().reason == "OVERLOADED"
        world.peer = "ipv4:127.0.0.1:40001"
        refused = Call(world, "ClaimRotation", "").send(pb.ClaimRotationRequest(claim_token="token")).refused()
        assert refused.reason == "CLAIM_TOKEN_INVALID"
        for call in waiting:
            call.cancel()

    def test_a_claim_token_before_the_lane(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Text that is not a claim token is refused without a thread, and after many such refusals, late."""
        monkeypatch.setattr(type(world.core.lanes.claim), "run", None)
        for token in ("", "token", "claim_token", "x" * 513):
            refused = Call(world, "ClaimRotation", "").send(pb.ClaimRotationRequest(claim_token=token)).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CLAIM_TOKEN_INVALID")
        monkeypatch.setattr(shares, "PROMPT_REFUSALS", limits.Limit("prompt", 0, "calls", ""))
        late = Call(world, "ClaimRotation", "").send(pb.ClaimRotationRequest(claim_token="token"))
        assert not late.task.done()
        late.cancel()


class TestBody:
    """The message after the headers."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run the engine's check for slow callers at each turn of the loop."""
        monkeypatch.setattr(engine, "SWEEP", 0)

    def test_none_in_time(self, world: World, seconds: SimpleNamespace) -> None:
        """A call without a message is refused with REQUEST_TOO_SLOW after SECONDS_TO_SEND."""
        waiting = [Call(world, method) for method in METHODS]
        seconds.now += shares.SECONDS_TO_SEND.most - 0.01
        sweep(world)
        assert not any(call.task.done() for call in waiting)
        seconds.now += 0.01
        sweep(world)
        for call in waiting:
            assert call.task.done()
            refused = call.refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW")

    def test_what_has_come_is_counted(self, world: World) -> None:
        """While the counter runs, a call's headers count when it starts, and its message when it arrives."""
        request = pb.GetRequest(key_id=world.create().api_key.id)
        shedding = world.core.shedding
        shedding.heard = {}
        try:
            call = Call(world, "Get")
            (heard,) = shedding.heard.values()
            assert HEADERS <= heard <= HEADERS + 2_000
            call.send(request).answer()
            assert set(shedding.heard.values()) == {heard + request.ByteSize()}
        finally:
            shedding.heard = None

    def test_the_late_alone(self, world: World, seconds: SimpleNamespace) -> None:
        """The time to send runs from each call's own headers, and a refused call gives its place back."""
        late = [Call(world, "Get") for _ in range(3)]
        seconds.now += shares.SECONDS_TO_SEND.most
        early = Call(world, "List")
        sweep(world)
        assert {call.refused().reason for call in late} == {"REQUEST_TOO_SLOW"}
        assert early.send(pb.ListRequest()).answer().api_keys

    def test_late(self, world: World, seconds: SimpleNamespace) -> None:
        """A message that arrives just in time is served, and the call is not ended as slow afterwards."""
        call = Call(world, "List")
        seconds.now += shares.SECONDS_TO_SEND.most - 0.01
        call.send(pb.ListRequest())
        seconds.now += 1
        sweep(world)
        assert call.answer().api_keys

    def test_none(self, world: World) -> None:
        """A stream that ends without a message is refused as UNDECODABLE."""
        for method in METHODS:
            refused = Call(world, method).send(grpc.aio.EOF).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")

    def test_two(self, world: World) -> None:
        """The first of two messages is the request; the server does not read the second."""
        first, second = pb.VerifyRequest(key=world.operator), pb.VerifyRequest(key="garbage")
        call = Call(world, "Verify").send(first, second)
        assert call.answer().valid
        assert call.reads == 1

    def test_goodbye(self, world: World) -> None:
        """A stopping server ends the calls without a message, so that their callers go elsewhere."""
        call = Call(world, "Get")

        async def say() -> None:
            world.core.engine.say_goodbye()

        on_loop(say())
        refused = call.refused()
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")

    def test_gone(self, world: World, seconds: SimpleNamespace) -> None:
        """A call that is cancelled before its message leaves nothing behind."""
        Call(world, "Get").cancel()
        seconds.now += shares.SECONDS_TO_SEND.most
        sweep(world)
        assert Call(world, "List").send(pb.ListRequest()).answer().api_keys


class TestUnread:
    """Unread responses: how many bytes of them are allowed, and for how long."""

    LONG = ("BatchVerify", "List", "ListEvents", "ListDeliveries")

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make every response count as long, and one response exhaust a project's share."""
        for name, most in (("LONG_ANSWER", 1), ("UNREAD_OF_A_PROJECT", 2), ("UNREAD", 10_000)):
            monkeypatch.setattr(shares, name, limits.Limit(name, most, "bytes", ""))

    @staticmethod
    def unread(world: World, key: str) -> Call:
        """Make a call whose response is ready and not read."""
        call = Call(world, "List", key).send(pb.ListRequest())
        on_loop(soon(call.answered.is_set))
        return call

    def test_no_more(self, world: World) -> None:
        """A project with too many unread bytes gets no more long responses, and such a call's message is not read.

        The project's other calls and other projects go on.
        """
        key, other = world.caller("tumbler:*"), world.caller("tumbler:*", project_id="globex")
        unread = self.unread(world, key)
        for method in self.LONG:
            call = Call(world, method, key)
            refused = call.refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert refused.retry_delay > 0
            assert call.reads == 0
        assert {method for method, row in engine.METHODS.items() if row.long} == set(self.LONG)
        key_id = world.create().api_key.id
        assert Call(world, "Verify", key).send(pb.VerifyRequest(key=key)).answer().valid
        assert Call(world, "Get", key).send(pb.GetRequest(key_id=key_id)).answer().api_key.id == key_id
        Call(world, "Revoke", key).send(pb.RevokeRequest(key_id=key_id)).answer()
        assert Call(world, "List", other).send(pb.ListRequest()).answer().api_keys
        assert unread.answer().api_keys
        assert Call(world, "List", key).send(pb.ListRequest()).answer().api_keys

    def test_nothing_is_read_for_it(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Calls that were already waiting when the project reached its limit are refused before any work."""
        key = world.caller("tumbler:*")
        waiting = [Call(world, method, key) for method in self.LONG]
        self.unread(world, key)
        for kind in (Listing, Trail, WebhookAdmin):
            monkeypatch.setattr(kind, "page", None)
        monkeypatch.setattr(Verifier, "judge", None)
        for call, method in zip(waiting, self.LONG, strict=True):
            assert call.send(request_for(method, "")).refused().reason == "OVERLOADED"

    def test_not_taken_in_time(self, world: World, seconds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call of any method is ended if its response is not read in time, and its place is given back."""
        monkeypatch.setattr(engine, "SWEEP", 0)
        crowd = world.core.engine._crowds[shares.VERIFY_CROWD]
        call = Call(world, "Verify").send(pb.VerifyRequest(key=world.operator))
        on_loop(soon(call.answered.is_set))
        seconds.now += shares.SECONDS_TO_READ.most - 0.01
        sweep(world)
        assert not call.task.done()
        assert len(crowd.unread) == 1
        seconds.now += 0.01
        sweep(world)
        assert call.task.cancelled()
        assert (len(crowd.unread), len(crowd)) == (0, 0)


class TestJudgedAgain:
    """A caller that changes while its call is in flight."""

    def test_between_headers_and_body(self, world: World) -> None:
        """A call is refused if its key is revoked between its headers and its message."""
        key = world.create(scopes=["tumbler:*"])
        key_id = world.create().api_key.id
        waiting = {method: Call(world, method, key.key) for method in POLICY}
        world.revoke(key.api_key.id)
        events = len(world.events())
        for method, call in waiting.items():
            assert call.send(request_for(method, key_id)).refused().code is grpc.StatusCode.UNAUTHENTICATED
        assert len(world.events()) == events

    def test_networks_between_headers_and_body(self, world: World) -> None:
        """A call is refused if its key's networks or scopes exclude it between its headers and its message."""
        key = world.create(scopes=["tumbler:keys:read"])
        call = Call(world, "List", key.key)
        world.update(key.api_key.id, allowed_cidrs=["203.0.113.0/24"])
        assert call.send(pb.ListRequest()).refused().reason == "UNAUTHENTICATED"
        key = world.create(scopes=["tumbler:keys:read"])
        call = Call(world, "List", key.key)
        world.update(key.api_key.id, "scopes")
        assert call.send(pb.ListRequest()).refused().reason == "SCOPE_MISSING"

    def test_forgotten_between_headers_and_body(self, world: World) -> None:
        """A caller that a small cache evicts meanwhile is read again and served, unless its key was revoked."""
        world.reopen(cache_size=1)
        key = world.create(scopes=["tumbler:*"])
        for revoked in (False, True):
            call = Call(world, "List", key.key)
            if revoked:
                world.revoke(key.api_key.id)
            world.page()  # another caller
            call.send(pb.ListRequest())
            if revoked:
                assert call.refused().reason == "UNAUTHENTICATED"
            else:
                assert call.answer().api_keys

    @pytest.mark.parametrize("change", ["scopes", "networks", "active"])
    def test_a_grant_by_another_server(self, world: World, twin: World, change: str) -> None:
        """A grant by another server counts as soon as a revocation by it would, even if the cache says no."""
        key = world.create(scopes=["tumbler:keys:read"])
        if change == "scopes":
            world.update(key.api_key.id, "scopes")
        elif change == "networks":
            world.update(key.api_key.id, allowed_cidrs=["203.0.113.0/24"])
        else:
            world.set_active(key.api_key.id, False)
        for _ in range(2):
            world.refused("List", pb.ListRequest(), key.key)
        if change == "scopes":
            twin.update(key.api_key.id, scopes=["tumbler:keys:read"])
        elif change == "networks":
            twin.update(key.api_key.id, "allowed_cidrs")
        else:
            twin.set_active(key.api_key.id, True)
        if not world.core.tail.commits_show:
            world.let_lapse()
        assert world.page(key.key).api_keys

    @pytest.mark.parametrize(
        ("method", "change"),
        [
            *((method, "revoked") for method in CHANGES),
            ("Create", "without its scope"),
            ("Update", "expired"),
            ("Rotate", "deactivated"),
        ],
    )
    def test_inside_the_transaction(
        self, world: World, twin: World, method: str, change: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A caller that loses its permission after admission is refused in the transaction, and nothing is written."""
        key = world.create(scopes=["tumbler:*"], project_id="acme")
        key_id = world.create().api_key.id
        world.page(key.key)
        events: list[int] = []

        def change_caller() -> None:
            if change == "revoked":
                twin.revoke(key.api_key.id)
            elif change == "without its scope":
                twin.update(key.api_key.id, "scopes")
            elif change == "deactivated":
                twin.set_active(key.api_key.id, False)
            else:
                world.clock.advance(1)
                twin.update(key.api_key.id, expire_time={"seconds": world.clock.now // 1_000_000 + 1})
                world.clock.advance(2_000_000)
            events.append(len(twin.events()))

        with before_work(monkeypatch, change_caller):
            call = Call(world, method, key.key).send(request_for(method, key_id))
            refused = call.refused()
        expected = "SCOPE_MISSING" if change == "without its scope" else "UNAUTHENTICATED"
        assert refused.reason == expected
        assert events == [len(world.events())]

    def test_by_its_network(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The transaction checks the caller's address again."""
        key = world.create(scopes=["tumbler:*"], allowed_cidrs=["127.0.0.0/8"])
        assert Call(world, "Create", key.key).send(pb.CreateRequest(project_id="acme")).answer().key
        with before_work(monkeypatch, lambda: world.update(key.api_key.id, allowed_cidrs=["203.0.113.0/24"])):
            assert (
                Call(world, "Create", key.key).send(pb.CreateRequest(project_id="acme")).refused().reason
                == "UNAUTHENTICATED"
            )


class TestGone:
    """Callers that are gone when their turn comes."""

    def test_deadline(self, world: World) -> None:
        """Nothing is written for a caller whose deadline has passed when its turn comes."""
        key_id = world.create().api_key.id
        events = len(world.events())
        for method in CHANGES:
            refused = Call(world, method, left=0.0).send(request_for(method, key_id)).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.CANCELLED, "CALLER_GONE")
        assert len(world.events()) == events

    def test_deadline_while_waiting(
        self, world: World, seconds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing is written if the deadline passes, or the caller cancels, while the call queues."""
        begun, end = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert end.wait(PATIENCE)

        key_id = world.create().api_key.id
        update = pb.UpdateRequest(api_key={"id": key_id, "name": "first"})
        with before_work(monkeypatch, wait):
            first = Call(world, "Update").send(update)
            assert begun.wait(PATIENCE)
            late = Call(world, "Update", left=5.0).send(pb.UpdateRequest(api_key={"id": key_id, "name": "late"}))
            seconds.now += 5
            gone = Call(world, "Update").send(pb.UpdateRequest(api_key={"id": key_id, "name": "gone"}))
            gone.cancel()
            end.set()
            assert first.answer().api_key.name == "first"
            assert late.refused().reason == "CALLER_GONE"
        assert world.get(key_id).name == "first"
        update.api_key.name = "last"
        assert Call(world, "Update").send(update).answer().api_key.name == "last"

    def test_while_it_waits_to_write(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is written for a caller that cancels after its work has begun and before the write."""
        begun, end = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert end.wait(PATIENCE)

        key_id = world.create().api_key.id
        events = len(world.events())
        with before_work(monkeypatch, wait):
            call = Call(world, "Update").send(pb.UpdateRequest(api_key={"id": key_id, "name": "gone"}))
            assert begun.wait(PATIENCE)
            call.cancel()
            end.set()
            # The call keeps its place in the lane until its work ends, so a later call sees all that it did.
            world.update(key_id, name="after")
        assert len(world.events()) == events + 1
        assert world.get(key_id).name == "after"


@pytest.mark.parametrize(
    ("size", "kind"),
    [(shares.HEADER_BYTES.most, exchange.Refusal), (shares.HEADER_BYTES.most + 1, exchange.Cut)],
    ids=["small", "large"],
)
def test_calls_of_methods_that_there_are_not(world: World, size: int, kind: type[exchange.Refusal]) -> None:
    """Unknown methods are refused as strangers' calls are, late after many, and with the same header limits."""
    handler = world.core.engine.service(Details("", (), size))
    assert type(handler) is kind


def test_a_server_whose_loop_ends_by_itself_asks_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the event loop ends by itself, the server sends itself SIGTERM and knows that it has failed."""
    url = f"sqlite:///{tmp_path}/tumbler.db"
    founding.found(Installation(tmp_path, url), CHEAP, "tmb")
    told: queue.Queue[tuple[int, int]] = queue.Queue()
    monkeypatch.setattr(server.os, "kill", lambda *what: told.put(what))
    serving = build_server(Config(Installation(tmp_path, url), listen="127.0.0.1:0"))
    serving.start()
    assert not serving.failed
    monkeypatch.setattr(serving._loop.loop, "select", lambda _: 1 / 0)
    assert told.get(timeout=PATIENCE) == (os.getpid(), signal.SIGTERM)
    assert serving.failed
    serving.stop()


class TestTables:
    """A server does not start with an RPC that has no policy or limits."""

    @pytest.mark.parametrize("table", ["POLICY", "METHODS"])
    def test_a_row_is_missing(self, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An RPC without a row in either table is named in the error, and the server does not listen."""
        url = f"sqlite:///{tmp_path}/tumbler.db"
        founding.found(Installation(tmp_path, url), CHEAP, "tmb")
        config = Config(Installation(tmp_path, url), listen="127.0.0.1:0")
        rows: Any = auth.POLICY if table == "POLICY" else engine.METHODS
        for method in METHODS:
            with monkeypatch.context() as patch:
                patch.delitem(rows, method)
                with pytest.raises(SetupError, match=rf"{method}\b.*{table}"):
                    build_server(config)

    def test_a_row_too_many(self) -> None:
        """A row without an RPC is named in the error, because it may be misspelled."""
        engine.check_methods(SERVICE)
        with pytest.raises(SetupError, match="Destroy"):
            engine.check_methods(SERVICE, {**engine.METHODS, "Destroy": engine.METHODS["Revoke"]})


@contextlib.contextmanager
def before_work(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> Iterator[None]:
    """Run ``then`` once after a call's admission, on its lane's thread, before its work begins."""
    waiting = [then]
    serving = calls.serving

    def serve(call: calls.Call | None) -> Any:
        if waiting:
            waiting.pop()()
        return serving(call)

    with monkeypatch.context() as patch:
        patch.setattr(calls, "serving", serve)
        yield
    assert not waiting
