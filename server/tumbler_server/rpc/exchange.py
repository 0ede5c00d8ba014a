"""A call on the loop, from its headers to its answer; one class for each way of being served.

Each step is cheaper than what it guards. The headers come first: the caller is found by its credential, and its scope
held against the policy. Then the call is counted, and its message received, measured, parsed and counted. Only then
does the domain get to work. What is in memory is answered on the loop; what reads, writes or hashes runs on the threads
of its lane, behind a queue in which projects take turns.
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
from tumbler_server.keys.verifier import Unknown, View
from tumbler_server.limits import Limit
from tumbler_server.rpc import auth, counting, status
from tumbler_server.rpc.ending import at_end, cut_off, task
from tumbler_server.rpc.hotpath import HotPath
from tumbler_server.rpc.lanes import Lane
from tumbler_server.rpc.presence import Presence
from tumbler_server.rpc.servicer import Servicer
from tumbler_server.rpc.shedding import Shedding
from tumbler_server.rpc.spreading import Turns, spread
from tumbler_server.rpc.unsent import Unsent
from tumbler_server.rpc.watch import Watching

_AROUND = 1_024
"""Bytes that HTTP/2 needs for a call, beside its headers and its message; at the most, as a rule."""


@dataclass(frozen=True)
class House:
    """What calls are served with."""

    servicer: Servicer
    hotpath: HotPath
    watching: Watching
    shedding: Shedding
    unsent: Unsent
    verifying: Turns


@dataclass(frozen=True)
class Plan:
    """How one method is served. ``lane`` says on whose threads a request of it is worked on.

    ``long`` says whether its answer may be long, and so is given only to who has read earlier ones.
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
    """What serves a call, from when its headers have come: whether a message is received is its own to decide."""

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
        """Why the call is ended while its message has not come."""

    def judge_headers(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Judge the caller by the call's headers, as far as memory reaches. Raises ``Unauthenticated``."""
        method, verifier = self.plan.method, self.house.servicer.verifier
        if auth.POLICY[method] == auth.OPEN:
            return
        self.text = auth.credential(metadata)
        found = verifier.recall(self.text)
        if isinstance(found, Unknown):
            return  # it is judged once there is a context
        if not isinstance(found, Key):
            raise Unauthenticated
        try:
            self.caller = auth.admit(found, method, verifier.now(), str)
        except (Unauthenticated, ScopeMissing):
            return  # it may have changed since, or be let in by its network: it is judged by a view, and with a context

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Serve the call; gRPC's way in."""
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
        """Return the serialized response. Raises what to tell instead."""
        raise NotImplementedError

    def cut(self) -> None:
        """Cut the call off: its answer is not taken."""
        if self.task is not None:
            cut_off(self.task, self.context)

    def end(self, failure: TumblerError) -> None:
        """End the call, while its message has not come."""
        if self.task is not None:
            self.ended = failure
            self.task.cancel()

    def _finish(self) -> None:
        """Note that nothing is left but to be taken by the caller."""
        self.since = time.monotonic()
        self.plan.present.unread[self] = None

    async def receive(self, context: Any) -> bytes:
        """Take the call in, and return its message.

        Raises ``Unauthenticated``, ``ScopeMissing``, ``StoreUnavailable``, ``Overloaded``, ``RequestTooSlow``,
        ``RequestTooLarge`` and ``Undecodable``.
        """
        if self.failure is not None:
            raise self.failure
        plan = self.plan
        if self.text and self.caller is auth.NOBODY:
            await self.house.hotpath.view()  # what memory has of the caller counts no earlier
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
        """Return the request that a message is. Raises ``Undecodable`` and ``InvalidFields``."""
        plan = self.plan
        try:
            request = plan.request.FromString(data)
        except Exception:
            # Whatever a parser makes of hostile bytes: it must not get away as INTERNAL.
            raise Undecodable(plan.request.DESCRIPTOR.full_name) from None
        counting.demand(request)
        return request

    async def hold_back(self, failure: Exception, context: Any) -> None:
        """Return when a caller may be told that it was not let in. Whatever else failed is told at once."""
        if self.caller is auth.NOBODY and isinstance(failure, Unauthenticated | ClaimTokenInvalid):
            await self.house.shedding.refuse(context.peer())

    def settled(self) -> View | None:
        """Return the view that the call rests on, if memory gives one and the caller has not changed by that."""
        verifier, caller = self.house.servicer.verifier, self.caller
        view = self.house.hotpath.view_now()
        if view is None or not (verifier.remembers(caller) or caller is auth.NOBODY):
            return None
        verifier.used(caller)
        return view

    async def settle(self, context: Any) -> View:
        """Take the view that the call rests on; where the caller has changed by that, judge it again.

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
        address = lambda: auth.peer_address(context.peer())  # noqa: E731 - asked only where it matters
        self.caller = auth.admit(found, self.plan.method, verifier.now(), address)


class Refusal(Handler):
    """Ends calls with a status that is made once: it is what a flood costs us most of."""

    __slots__ = ("_shedding", "_told")

    def __init__(self, told: status.Told, shedding: Shedding) -> None:
        self._told = told
        self._shedding = shedding

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Refuse the call; gRPC's way in."""
        await self._shedding.refuse(context.peer())
        return await status.end(context, self._told)


class Farewell(Handler):
    """Ends calls that come to a server which ends: at once, whoever calls."""

    __slots__ = ("_told",)

    def __init__(self, told: status.Told) -> None:
        self._told = told

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Refuse the call; gRPC's way in."""
        return await status.end(context, self._told)


class Cut(Refusal):
    """Ends a call, and with it the connection of a stranger; with ``whoever``, everybody's."""

    __slots__ = ("_whoever",)

    def __init__(self, told: status.Told, shedding: Shedding, whoever: bool) -> None:
        super().__init__(told, shedding)
        self._whoever = whoever

    async def stream_unary(self, _: object, context: Any) -> bytes:
        """Refuse the call; gRPC's way in."""
        self._shedding.cut(context.peer(), self._whoever)
        return await status.end(context, self._told)


class Verify(Exchange):
    """A Verify: on the loop, but for records that have to be read and secrets that only bcrypt can prove."""

    __slots__ = ()

    async def answer(self, context: Any) -> bytes:
        """Give the verdict."""
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
    """A BatchVerify: on the loop too, item by item, between which others have their turn."""

    __slots__ = ()

    async def answer(self, context: Any) -> bytes:
        """Give the verdicts."""
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
    """A call that reads or writes keys: on a thread of its lane."""

    __slots__ = ("named",)

    def judge_headers(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Judge the caller, and keep what it named the call. Raises ``Unauthenticated``."""
        self.named = auth.named(metadata)
        super().judge_headers(metadata)

    async def answer(self, context: Any) -> bytes:
        """Have the work done, if the caller still waits when its turn comes."""
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
            self.house.unsent.check(self.caller.project_id)  # again: others have been answered while it waited
        plan = self.plan
        return self.house.servicer.work(plan.method, plan.work, self.caller, request, call).SerializeToString()


class Claim(Manage):
    """A ClaimRotation: its token is its credential, and is judged before anything waits for a thread."""

    __slots__ = ()

    def decode(self, data: bytes) -> Any:
        """Return the request, if its token is one of ours. Raises ``ClaimTokenInvalid`` too."""
        request = super().decode(data)
        self.house.servicer.read_claim(request.claim_token)
        return request


class Watch(Exchange):
    """A stream of changes: this task, for as long as the caller listens."""

    response_streaming = True
    __slots__ = ()

    async def stream_stream(self, _: object, context: Any) -> None:
        """Serve the stream; gRPC's way in."""
        try:
            request = self.decode(await self.receive(context))
            await self.settle(context)
            at_end(self.house.shedding.stay(context.peer()))
            wanted = self.house.servicer.wanted(self.caller, request)
            address = auth.peer_address(context.peer())
            # First and by itself: gRPC would send it a second time, and so no status at all, if the stream were to end
            # during its first write.
            await context.send_initial_metadata(())
            await self.house.watching.serve(self.caller, wanted, address, context.write)
            return
        except Exception as failure:
            failed = failure
        told = status.told(failed, self.plan.method)
        await self.hold_back(failed, context)
        await status.end(context, told)
