"""What a call has to pass before anything is done for it, and in which order."""

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

from tests.harness import CHEAP, Context, Refused, World, _Aborted, on_loop
from tests.rpc.test_callers import POLICY, request_for
from tests.unit.test_lanes import PATIENCE, soon, turns
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import calls, founding, limits, server, shares
from tumbler_server.config import Config, Installation
from tumbler_server.errors import SetupError
from tumbler_server.keys.deliveries import Deliveries
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.secret import generate
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.verifier import Verifier
from tumbler_server.rpc import auth, engine, exchange
from tumbler_server.rpc.serving import Details
from tumbler_server.server import SERVICE, build_server

METHODS = [*POLICY, "ClaimRotation"]

HEADERS = 5_000
"""Bytes of a call's headers."""

CHANGES = ["Create", "Update", "SetActive", "Revoke", "Rotate"]


class Slow(Context):
    """What gRPC gives the handler of a call whose messages come when the test says so."""

    def __init__(self, peer: str, metadata: Any, left: float | None) -> None:
        super().__init__(peer, b"", metadata, left)
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.reads = 0
        """How often the server has asked for a message."""

    async def read(self) -> Any:
        self.reads += 1
        return await self.sent.get()


class Call:
    """A call of which gRPC has the headers."""

    def __init__(self, world: World, method: str, key: str | None = None, left: float | None = None) -> None:
        self._world = world
        self._method = method
        self._key = world.operator if key is None else key
        self._left = left
        on_loop(self._begin())

    @property
    def reads(self) -> int:
        """How often the server has asked for a message."""
        return self.context.reads

    def send(self, *messages: Any) -> "Call":
        """Have messages come."""

        async def send() -> None:
            for message in messages:
                self.context.sent.put_nowait(message.SerializeToString() if isinstance(message, Message) else message)
            await turns()

        on_loop(send())
        return self

    def answer(self) -> Any:
        """Return the response. Raises ``Refused``."""
        answer = on_loop(self._end())
        return GetMessageClass(SERVICE.methods_by_name[self._method].output_type).FromString(answer)

    def refused(self) -> Refused:
        """Return how the call was refused."""
        with pytest.raises(Refused) as raised:
            self.answer()
        return raised.value

    def cancel(self) -> None:
        """Have the caller leave."""

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
        """That the answer is there."""
        self.taken = asyncio.Event()
        """That the caller has taken it."""

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
        except _Aborted:
            raise Refused(self.context.code, self.context.details, self.context.trailing) from None


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Give the monotonic clock of admission, which stands until ``now`` is set."""
    clock = SimpleNamespace(now=1_000.0)
    clock.monotonic = lambda: clock.now
    for module in (engine, exchange, calls):
        monkeypatch.setattr(module, "time", clock)
    return clock


def sweep(world: World) -> None:
    """Have the engine look once for callers who have not sent their request in time."""

    async def once() -> None:
        sweeping = asyncio.ensure_future(world.core.engine.sweep())
        await turns()
        sweeping.cancel()
        await turns()

    on_loop(once())


class TestOrder:
    """Each step is cheaper than what it guards: the first that fails answers, and what comes after is not done."""

    def test_credential_before_body(self, world: World) -> None:
        """Who is not known is refused by the headers: no message is asked for."""
        for method, key in itertools.product(POLICY, ("", "garbage", generate("tmb").text)):
            call = Call(world, method, key)
            assert call.refused().code is grpc.StatusCode.UNAUTHENTICATED
            assert call.reads == 0

    def test_policy_before_body(self, world: World) -> None:
        """Who lacks the scope is refused by the headers, whether or not the key is in memory already."""
        key = world.caller("orders:read")
        for method in POLICY:
            call = Call(world, method, key)
            assert call.refused().reason == "SCOPE_MISSING"
            assert call.reads == 0

    def test_policy_before_size(self, world: World) -> None:
        """Who lacks the scope does not learn that the request is too large."""
        call = Call(world, "Get", world.caller("orders:read")).send(b"x" * 1_000_000)
        assert call.refused().reason == "SCOPE_MISSING"

    def test_size_before_parse(self, world: World) -> None:
        """What is too large is not decoded, and the answer names both sizes; up to the limit it is."""
        for method in METHODS:
            most = engine.METHODS[method].size.most
            refused = Call(world, method).send(b"\xff" * (most + 1)).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
            assert dict(refused.info.metadata) == {"bytes": str(most + 1), "most": str(most)}
            refused = Call(world, method).send(b"\xff" * most).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")

    def test_sizes(self) -> None:
        """A Verify and a BatchVerify have sizes of their own; of all others none is larger than what a record needs."""
        sizes = {method: row.size.most for method, row in engine.METHODS.items()}
        assert sizes.pop("Verify") == limits.VERIFY_BYTES.most
        assert sizes.pop("BatchVerify") == limits.BATCH_BYTES.most
        assert set(sizes.values()) == {limits.REQUEST_BYTES.most}

    def test_counts_before_rules(self, world: World) -> None:
        """A list that is too long is told as such, and no entry of it is looked at."""
        refused = Call(world, "Create").send(pb.CreateRequest(name="x", scopes=["no scope!"] * 101)).refused()
        assert refused.fields == ["scopes"]
        assert "at most 100 entries" in refused.message
        refused = Call(world, "Get").send(pb.GetRequest(key_id="k" * 100_000)).refused()
        assert (refused.reason, refused.fields) == ("INVALID_FIELD", ["key_id"])

    def test_a_place_before_the_body(self, world: World) -> None:
        """Where a project has as many calls as it may, its next is refused before its message is asked for.

        Other projects go on, and so do its other kinds of calls: above all, it can stop a key.
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
        """Where no key is needed, a connection counts as a project does."""
        waiting = [Call(world, "ClaimRotation", "") for _ in range(shares.OPEN_CROWD.most_each)]
        assert Call(world, "ClaimRotation", "").refused().reason == "OVERLOADED"
        world.peer = "ipv4:127.0.0.1:40001"
        refused = Call(world, "ClaimRotation", "").send(pb.ClaimRotationRequest(claim_token="token")).refused()
        assert refused.reason == "CLAIM_TOKEN_INVALID"
        for call in waiting:
            call.cancel()

    def test_a_claim_token_before_the_lane(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is no claim token of ours is refused before anything waits for a thread; many such, late."""
        monkeypatch.setattr(type(world.core.lanes.claim), "run", None)
        for token in ("", "token", "claim_token", "x" * 513):
            refused = Call(world, "ClaimRotation", "").send(pb.ClaimRotationRequest(claim_token=token)).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CLAIM_TOKEN_INVALID")
        monkeypatch.setattr(shares, "PROMPT_REFUSALS", limits.Limit("prompt", 0, "calls", ""))
        late = Call(world, "ClaimRotation", "").send(pb.ClaimRotationRequest(claim_token="token"))
        assert not late.task.done()
        late.cancel()


class TestBody:
    """The message that has to come after the headers."""

    @pytest.fixture(autouse=True)
    def often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the engine look at each turn of the loop."""
        monkeypatch.setattr(engine, "SWEEP", 0)

    def test_none_in_time(self, world: World, seconds: SimpleNamespace) -> None:
        """Whoever sends headers and nothing else is told so after as many seconds as there are for sending."""
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
        """A call's headers count when it is listened to, and its message when it has come, while somebody asks."""
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
        """The seconds count for each call from its own headers, and a place is given back."""
        late = [Call(world, "Get") for _ in range(3)]
        seconds.now += shares.SECONDS_TO_SEND.most
        early = Call(world, "List")
        sweep(world)
        assert {call.refused().reason for call in late} == {"REQUEST_TOO_SLOW"}
        assert early.send(pb.ListRequest()).answer().api_keys

    def test_late(self, world: World, seconds: SimpleNamespace) -> None:
        """A message that comes late but in time is served, and the call is never ended for it after that."""
        call = Call(world, "List")
        seconds.now += shares.SECONDS_TO_SEND.most - 0.01
        call.send(pb.ListRequest())
        seconds.now += 1
        sweep(world)
        assert call.answer().api_keys

    def test_none(self, world: World) -> None:
        """A stream that ends without a message is none that can be decoded."""
        for method in METHODS:
            refused = Call(world, method).send(grpc.aio.EOF).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")

    def test_two(self, world: World) -> None:
        """Of two messages the first is the request; the second is not even asked for."""
        first, second = pb.VerifyRequest(key=world.operator), pb.VerifyRequest(key="garbage")
        call = Call(world, "Verify").send(first, second)
        assert call.answer().valid
        assert call.reads == 1

    def test_goodbye(self, world: World) -> None:
        """A server that stops ends the calls whose message has not come, so that their callers go elsewhere."""
        call = Call(world, "Get")

        async def say() -> None:
            world.core.engine.say_goodbye()

        on_loop(say())
        refused = call.refused()
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")

    def test_gone(self, world: World, seconds: SimpleNamespace) -> None:
        """A caller who leaves before sending anything leaves nothing behind."""
        Call(world, "Get").cancel()
        seconds.now += shares.SECONDS_TO_SEND.most
        sweep(world)
        assert Call(world, "List").send(pb.ListRequest()).answer().api_keys


class TestUnread:
    """Answers that are not taken: how many bytes of them there may be, and for how long."""

    LONG = ("BatchVerify", "List", "ListEvents", "ListDeliveries")

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let all answers be long, and one of them be as much as a project may leave unread."""
        for name, most in (("LONG_ANSWER", 1), ("UNREAD_OF_A_PROJECT", 2), ("UNREAD", 10_000)):
            monkeypatch.setattr(shares, name, limits.Limit(name, most, "bytes", ""))

    @staticmethod
    def unread(world: World, key: str) -> Call:
        """Make a call whose answer is there, and is not taken."""
        call = Call(world, "List", key).send(pb.ListRequest())
        on_loop(soon(call.answered.is_set))
        return call

    def test_no_more(self, world: World) -> None:
        """Where a project has so much unread, it gets no more long answers, and no message is asked for.

        It goes on to verify and to change, and others go on to read.
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
        """Nor is anything done for calls that came before the answers did which are not taken."""
        key = world.caller("tumbler:*")
        waiting = [Call(world, method, key) for method in self.LONG]
        self.unread(world, key)
        for kind in (Listing, Trail, Deliveries):
            monkeypatch.setattr(kind, "page", None)
        monkeypatch.setattr(Verifier, "judge", None)
        for call, method in zip(waiting, self.LONG, strict=True):
            assert call.send(request_for(method, "")).refused().reason == "OVERLOADED"

    def test_not_taken_in_time(self, world: World, seconds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call is ended whose answer is not taken for too long, of whatever method; its place is given back."""
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
    """A caller that changes while its call is under way."""

    def test_between_headers_and_body(self, world: World) -> None:
        """A key that is revoked after its headers came and before its message does gets nothing."""
        key = world.create(scopes=["tumbler:*"])
        key_id = world.create().api_key.id
        waiting = {method: Call(world, method, key.key) for method in POLICY}
        world.revoke(key.api_key.id)
        events = len(world.events())
        for method, call in waiting.items():
            assert call.send(request_for(method, key_id)).refused().code is grpc.StatusCode.UNAUTHENTICATED
        assert len(world.events()) == events

    def test_networks_between_headers_and_body(self, world: World) -> None:
        """So does one that is bound to other networks, and one that loses its scope."""
        key = world.create(scopes=["tumbler:keys:read"])
        call = Call(world, "List", key.key)
        world.update(key.api_key.id, allowed_cidrs=["203.0.113.0/24"])
        assert call.send(pb.ListRequest()).refused().reason == "UNAUTHENTICATED"
        key = world.create(scopes=["tumbler:keys:read"])
        call = Call(world, "List", key.key)
        world.update(key.api_key.id, "scopes")
        assert call.send(pb.ListRequest()).refused().reason == "SCOPE_MISSING"

    def test_forgotten_between_headers_and_body(self, world: World) -> None:
        """A caller whom a small memory forgets meanwhile is read again, and served; who was revoked too is not."""
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
        """Whom memory refuses may have been let in elsewhere: that counts as soon as a taking away would."""
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
        """A caller that changes elsewhere after its admission is refused in the transaction, and nothing is written."""
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
        """Inside the transaction the caller's connection counts as it did before."""
        key = world.create(scopes=["tumbler:*"], allowed_cidrs=["127.0.0.0/8"])
        assert Call(world, "Create", key.key).send(pb.CreateRequest(project_id="acme")).answer().key
        with before_work(monkeypatch, lambda: world.update(key.api_key.id, allowed_cidrs=["203.0.113.0/24"])):
            assert (
                Call(world, "Create", key.key).send(pb.CreateRequest(project_id="acme")).refused().reason
                == "UNAUTHENTICATED"
            )


class TestGone:
    """Callers who do not wait any more when their turn comes."""

    def test_deadline(self, world: World) -> None:
        """Nothing is written for a caller whose deadline is over when its turn comes."""
        key_id = world.create().api_key.id
        events = len(world.events())
        for method in CHANGES:
            refused = Call(world, method, left=0.0).send(request_for(method, key_id)).refused()
            assert (refused.code, refused.reason) == (grpc.StatusCode.CANCELLED, "CALLER_GONE")
        assert len(world.events()) == events

    def test_deadline_while_waiting(
        self, world: World, seconds: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So it is where the deadline passes while the call waits behind others of its project; the next is served."""
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
        """Who leaves after its work has begun and before it may write gets nothing written."""
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
            # Its place in the lane is held until its work is over: who comes after it comes after all that it did.
            world.update(key_id, name="after")
        assert len(world.events()) == events + 1
        assert world.get(key_id).name == "after"


@pytest.mark.parametrize(
    ("size", "kind"),
    [(shares.HEADER_BYTES.most, exchange.Refusal), (shares.HEADER_BYTES.most + 1, exchange.Cut)],
    ids=["small", "large"],
)
def test_calls_of_methods_that_there_are_not(world: World, size: int, kind: type[exchange.Refusal]) -> None:
    """They are refused as strangers' calls are, late where they are many; and their headers are held to the limits."""
    handler = world.core.engine.service(Details("", (), size))
    assert type(handler) is kind


def test_a_server_whose_loop_ends_by_itself_asks_to_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the loop end though nobody stopped the server, the process is told to end, and knows it has failed."""
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
    """A server does not start with an RPC that nobody has thought about."""

    @pytest.mark.parametrize("table", ["POLICY", "METHODS"])
    def test_a_row_is_missing(self, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An RPC without a row in either table is named, and nothing listens."""
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
        """A row without an RPC is named as well: it may be one that is spelled wrong."""
        engine.check_methods(SERVICE)
        with pytest.raises(SetupError, match="Destroy"):
            engine.check_methods(SERVICE, {**engine.METHODS, "Destroy": engine.METHODS["Revoke"]})


@contextlib.contextmanager
def before_work(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object]) -> Iterator[None]:
    """Have something happen once after a call was admitted, on the thread of its lane, before its work begins."""
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
