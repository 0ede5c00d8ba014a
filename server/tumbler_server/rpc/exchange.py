"""A call on the loop, from its headers to its answer; one class for each way of serving a call.

Each step costs less than what it protects. The headers come first: they identify the caller by its credential, and
the caller's scopes are checked against the policy. Then the call is counted, and its message is received, measured,
parsed and counted. Only then does the domain start to work. The loop answers what is in memory. Work that reads,
writes or hashes runs on the threads of its lane, behind a queue in which projects take turns.
"""

import asyncio
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from tumbler_server.calls import Call
from tumbler_server.errors import (
    CallerGone,
    ClaimTokenInvalid,
    RequestTooLarge,
    ScopeMissing,
    TumblerError,
    Unauthenticated,
    Undecodable,
)
from tumbler_server.keys.record import Key
from tumbler_server.limits import Limit
from tumbler_server.rpc import auth, counting, status
from tumbler_server.rpc.ending import at_end, cut_off, task
from tumbler_server.rpc.hotpath import HotPath
from tumbler_server.rpc.lanes import Lane
from tumbler_server.rpc.presence import Presence
from tumbler_server.rpc.servicer import Servicer
from tumbler_server.rpc.shedding import Shedding
from tumbler_server.rpc.spreading import VerifyTurns, spread
from tumbler_server.rpc.unsent import Unsent
from tumbler_server.rpc.watch import Watching
from tumbler_server.verify.verifier import Unknown, View

_AROUND = 1_024
"""Bytes that HTTP/2 adds to a call's headers and message; usually fewer."""


@dataclass(frozen=True)
class House:
    """What calls share."""

    servicer: Servicer
    hotpath: HotPath
    watching: Watching
    shedding: Shedding
    unsent: Unsent
    verifying: VerifyTurns


@dataclass(frozen=True)
class Plan:
    """How one method is served. ``lane`` returns the lane that a request runs in.

    ``long``: the answer may be long, so a project gets it only if it has read enough of its earlier ones.
    """

    method: str
    kind: "type[Exchange]"
    request: type[Message]
    size: Limit
    present: Presence
    work: Callable[[Servicer, Key, Any], Message]
    lane: Callable[[Any], Lane]
    long: bool


class Handler:
    """Serves a call from the arrival of its headers, and decides whether to receive a message."""

    response_streaming: bool = False
    stream_unary: Any = None
    stream_stream: Any = None

    __slots__ = ()


class Exchange(Handler):
    """A call, from its headers to its answer."""

    __slots__ = ("caller", "context", "ended", "failure", "headed", "house", "peer", "plan", "since", "task", "text")

    def __init__(self, house: House, plan: Plan) -> None:
        self.house = house
        self.plan = plan
        self.text = ""
        self.caller = auth.NOBODY
        self.failure: Exception | None = None
        self.headed = 0
        """Bytes of its headers."""
        self.peer = ""
        self.since = 0.0
        self.task: asyncio.Task[Any] | None = None
        self.context: Any = None
        self.ended: TumblerError | None = None
        """Why the call is ended before its message arrives."""

    def judge_headers(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Check the caller by the call's headers, using memory only. Raises ``Unauthenticated``."""
        method, verifier = self.plan.method, self.house.servicer.verifier
        if auth.POLICY[method] == auth.OPEN:
            return
        self.text = auth.credential(metadata)
        found = verifier.recall(self.text)
        if isinstance(found, Unknown):
            return  # checked later, with a context
        if not isinstance(found, Key):
            raise Unauthenticated
        try:
            self.caller = auth.admit(found, method, verifier.now(), str)
        except (Unauthenticated, ScopeMissing):
            return  # the record may be stale, or the network allowed: checked later, with a view and a context

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Serve the call. The name is gRPC's."""
        failed: Exception
        try:
            answer = await self.answer(context)
            if self.plan.long:
                self.house.unsent.hold(self.caller.project_id, answer)
        except Exception as failure:
            failed = failure
        else:
            self._finish()
            return answer
        if self.task is not None:
            self._finish()
        told = status.told(failed, self.plan.method)
        await self.hold_back(failed, context)
        return await status.end(context, told)

    async def answer(self, context: Any) -> bytes:
        """Return the serialized response. Raises the error to send instead."""
        raise NotImplementedError

    def cut(self) -> None:
        """Cut the call off, because its answer is not read."""
        if self.task is not None:
            cut_off(self.task, self.context)

    def end(self, failure: TumblerError) -> None:
        """End the call, because its message has not arrived."""
        if self.task is not None:
            self.ended = failure
            self.task.cancel()

    def _finish(self) -> None:
        """Note that the call is finished, except that its answer is unread."""
        self.since = time.monotonic()
        self.plan.present.unread[self] = None

    async def receive(self, context: Any) -> bytes:
        """Admit the call, and return its message.

        Raises ``Unauthenticated``, ``ScopeMissing``, ``StoreUnavailable``, ``Overloaded``, ``RequestTooSlow``,
        ``RequestTooLarge`` and ``Undecodable``.
        """
        if self.failure is not None:
            raise self.failure
        plan = self.plan
        if self.text and self.caller is auth.NOBODY:
            await self.house.hotpath.view()  # the caller's cached record is valid only under a view
            await self._authenticate(context)
        self.peer = peer = context.peer()
        if self.caller is auth.NOBODY:
            party = peer
        else:
            party = self.caller.project_id
            self.house.shedding.let_in(peer)
        if plan.long:
            self.house.unsent.check(party)
        leave = plan.present.enter(party, self)
        self.context = context
        self.task = task()
        self.task.add_done_callback(leave)
        self._heard(self.headed + _AROUND)
        waiting = plan.present.waiting
        self.since = time.monotonic()
        waiting[self] = None
        try:
            data = await context.read()
        except asyncio.CancelledError:
            if self.ended is not None:
                raise self.ended from None
            raise
        finally:
            waiting.pop(self, None)
        if not isinstance(data, bytes):  # the stream ended without a message
            raise Undecodable(plan.request.DESCRIPTOR.full_name)
        self._heard(len(data))
        if len(data) > plan.size.most:
            raise RequestTooLarge(len(data), plan.size.most)
        return data

    def _heard(self, size: int) -> None:
        if (heard := self.house.shedding.heard) is not None:
            heard[self.peer] = heard.get(self.peer, 0) + size

    def decode(self, data: bytes) -> Any:
        """Return the request that a message holds. Raises ``Undecodable`` and ``InvalidFields``."""
        plan = self.plan
        try:
            request = plan.request.FromString(data)
        except Exception:
            # A parser may raise anything on hostile bytes. The caller must not get INTERNAL for that.
            raise Undecodable(plan.request.DESCRIPTOR.full_name) from None
        counting.demand(request)
        return request

    async def hold_back(self, failure: Exception, context: Any) -> None:
        """Wait until the caller may be told that its credential is invalid. Other failures do not wait."""
        if self.caller is auth.NOBODY and isinstance(failure, Unauthenticated | ClaimTokenInvalid):
            await self.house.shedding.refuse(context.peer())

    def settled(self) -> View | None:
        """Return a view for the call, if memory has one and the caller's record has not changed."""
        verifier, caller = self.house.servicer.verifier, self.caller
        view = self.house.hotpath.view_now()
        if view is None or not (verifier.remembers(caller) or caller is auth.NOBODY):
            return None
        verifier.used(caller)
        return view

    async def settle(self, context: Any) -> View:
        """Return a view for the call. If the caller's record has changed, check the caller again.

        Raises ``Unauthenticated``, ``ScopeMissing``, ``Overloaded`` and ``StoreUnavailable``.
        """
        view = await self.house.hotpath.view()
        verifier = self.house.servicer.verifier
        if not (verifier.remembers(self.caller) or self.caller is auth.NOBODY):
            await self._authenticate(context)
        verifier.used(self.caller)
        return view

    async def _authenticate(self, context: Any) -> None:
        house, verifier = self.house, self.house.servicer.verifier
        found = verifier.recall(self.text)
        if isinstance(found, Unknown):
            found = await house.hotpath.find(found, context.peer())
        address = lambda: auth.peer_address(context.peer())  # noqa: E731 - called only if it matters
        self.caller = auth.admit(found, self.plan.method, verifier.now(), address)


class Refusal(Handler):
    """Ends calls with a status that is built once, because floods consist mostly of such calls."""

    __slots__ = ("_shedding", "_told")

    def __init__(self, told: status.Told, shedding: Shedding) -> None:
        self._told = told
        self._shedding = shedding

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Refuse the call."""
        await self._shedding.refuse(context.peer())
        return await status.end(context, self._told)


class Farewell(Handler):
    """Ends calls that arrive while the server stops: immediately, for every caller."""

    __slots__ = ("_told",)

    def __init__(self, told: status.Told) -> None:
        self._told = told

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Refuse the call."""
        return await status.end(context, self._told)


class Cut(Refusal):
    """Ends a call and cuts its connection if it is unauthenticated; with ``whoever``, cuts any connection."""

    __slots__ = ("_whoever",)

    def __init__(self, told: status.Told, shedding: Shedding, whoever: bool) -> None:
        super().__init__(told, shedding)
        self._whoever = whoever

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Refuse the call."""
        self._shedding.cut(context.peer(), self._whoever)
        return await status.end(context, self._told)


class Verify(Exchange):
    """A Verify: runs on the loop, except for records to read and secrets that only bcrypt can prove."""

    __slots__ = ()

    async def answer(self, context: Any) -> bytes:
        """Return the verdict."""
        data = await self.receive(context)
        house = self.house
        if not house.verifying.now():
            await house.verifying.wait(self.caller.project_id)
        request = self.decode(data)
        view = self.settled() or await self.settle(context)
        caller = self.caller
        question = house.servicer.question(caller, request)
        verdict = house.hotpath.verify_now(question, view)
        if verdict is None:
            verdict = await house.hotpath.verify(question, view, caller.project_id)
        return house.servicer.verdict(verdict)


class BatchVerify(Exchange):
    """A BatchVerify: runs on the loop item by item, and yields to other calls in between."""

    __slots__ = ()

    async def answer(self, context: Any) -> bytes:
        """Return the verdicts."""
        request = self.decode(await self.receive(context))
        view = self.settled() or await self.settle(context)
        house, caller = self.house, self.caller
        party = caller.project_id
        lane = self.plan.lane(request)
        await lane.enter(party)
        try:
            house.unsent.check(party)
            questions = await spread(house.servicer.questions(caller, request))
            asked = [question for question in questions if question is not None]
            answers = iter(await house.hotpath.verify_all(asked, view, party))
            outcomes = [None if question is None else next(answers) for question in questions]
            return b"".join(await spread(house.servicer.verdicts(outcomes)))
        finally:
            lane.leave(party)


class Manage(Exchange):
    """A call that reads or writes keys: runs on a thread of its lane."""

    __slots__ = ("named",)

    def judge_headers(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Check the caller, and store the call's ``x-request-id``. Raises ``Unauthenticated``."""
        self.named = auth.named(metadata)
        super().judge_headers(metadata)

    async def answer(self, context: Any) -> bytes:
        """Run the work in its lane, if the caller still waits when its turn comes."""
        request = self.decode(await self.receive(context))
        await self.settle(context)
        caller, peer = self.caller, self.peer
        address = functools.partial(auth.peer_address, peer)
        left = context.time_remaining()
        call = Call(
            deadline=math.inf if left is None else time.monotonic() + left,
            peer=address,
            request_id=getattr(request, "request_id", "").lower() or self.named,
        )
        party = peer if caller is auth.NOBODY else caller.project_id
        try:
            return await self.plan.lane(request).run(party, self._work, call, request)
        except asyncio.CancelledError:
            call.gone = True
            raise

    def _work(self, call: Call, request: Message) -> bytes:
        if not call.alive():
            raise CallerGone
        if self.plan.long:
            self.house.unsent.check(self.caller.project_id)  # again: the project may have got other answers meanwhile
        plan = self.plan
        return self.house.servicer.work(plan.method, plan.work, self.caller, request, call).SerializeToString()


class Claim(Manage):
    """A ClaimRotation: its token is its credential, and is checked before the call waits for a thread."""

    __slots__ = ()

    def decode(self, data: bytes) -> Any:
        """Return the request, if its token was issued by this installation. Also raises ``ClaimTokenInvalid``."""
        request = super().decode(data)
        self.house.servicer.read_claim(request.claim_token)
        return request


class Watch(Exchange):
    """A stream of changes: its task runs for as long as the caller listens."""

    response_streaming = True
    __slots__ = ()

    async def stream_stream(self, _: object, context: Any) -> None:
        """Serve the stream. The name is gRPC's."""
        try:
            request = self.decode(await self.receive(context))
            await self.settle(context)
            at_end(self.house.shedding.stay(context.peer()))
            wanted = self.house.servicer.wanted(self.caller, request)
            address = auth.peer_address(context.peer())
            # Sent first and separately. If the stream ended during its first write, gRPC would send the metadata again,
            # and then no status at all.
            await context.send_initial_metadata(())
            await self.house.watching.serve(self.caller, wanted, address, context.write)
            return
        except Exception as failure:
            failed = failure
        told = status.told(failed, self.plan.method)
        await self.hold_back(failed, context)
        await status.end(context, told)
