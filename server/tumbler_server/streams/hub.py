"""Fan-out of events to streams. Each stream is a task on the event loop that serves its RPC. The hub schedules turns.

A stream has no queue, only a position in the log. In its turn it sends everything since that position. So a slow
stream costs nothing but its own lag, and changes in quick succession become one notice.

A heartbeat is a notice without events. It promises that a moment ago there was nothing more to send. None is sent while
that is unknown, for instance because the database does not answer. Listeners then stop trusting their caches.

Everything runs on the event loop's thread except database reads.
"""

import asyncio
import contextlib
import random
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from tumbler_server import clock as clocks
from tumbler_server import logs, metrics
from tumbler_server.clock import NEVER, SECOND, Clock
from tumbler_server.errors import ReaderTooSlow, ServerStopping, own
from tumbler_server.events.ring import SIZE
from tumbler_server.freshness.tail import Tail
from tumbler_server.secrets.opaque_tokens import Point
from tumbler_server.store.database import Store
from tumbler_server.streams.feed import Feed, Notice
from tumbler_server.streams.places import Places, overloaded
from tumbler_server.streams.stream import Phase, Place, Stream, Subscriber
from tumbler_server.streams.wheel import TICK, Wheel

FRESH = SECOND // 2
"""The greatest age of a heartbeat's promise when it is sent."""

PATIENCE = 5 * SECOND
"""How long a subscriber may take to accept one notice."""

MOST_LAG = 30 * SECOND
"""The longest total write time in which a subscriber that fell behind must be up to date again."""

TURN = 16
"""Most streams served in one pass of the event loop. They delay other work by about 2 ms."""

_CATCHING_UP = 4
"""How many turns a stream that is not up to date counts for. Its notice is long and not shared."""

_FAREWELL = 1.0
"""Seconds that streams have to end at shutdown."""

_CONFIRM = "confirm"

_NEVER_MET = -1
"""Not a number of resets of any tail."""

_log = logs.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Reading:
    """A database read in flight, and the streams that wait for it."""

    answer: "asyncio.Future[Any]"
    streams: list[Stream] = field(default_factory=list)


class Hub:
    """All streams of a process, at most ``most`` at a time. ``blocking`` runs database reads.

    Call its methods on the event loop's thread.
    """

    def __init__(
        self,
        store: Store,
        tail: Tail,
        clock: Clock,
        most: int,
        max_staleness: int,
        monotonic: Clock,
        blocking: Executor,
    ) -> None:
        self._tail = tail
        self._clock = clock
        self._monotonic = monotonic
        self._blocking = blocking
        self._fresh = min(FRESH, max_staleness)
        self._feed = Feed(store, tail)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places: Places[Stream] = Places(most)
        self._streams: set[Stream] = set()
        self._by_project: defaultdict[str, set[Stream]] = defaultdict(set)
        self._wheel: Wheel[Stream] = Wheel(monotonic())
        self._late: set[Stream] = set()
        self._ready: deque[Stream] = deque()
        self._giving_turns = False
        self._readings: dict[Hashable, _Reading] = {}
        self._writing: dict[Stream, int] = {}  # start of the write, the oldest first
        self._ticking: asyncio.TimerHandle | None = None
        self._moved = False
        self._resets, self._position = tail.resets, tail.position
        self._closed = False

    def __len__(self) -> int:
        return len(self._streams)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start serving streams on this event loop."""
        self._loop = loop
        self._tail.on_move(self._notice_move)

    async def serve(
        self, subscriber: Subscriber, project_id: str, until: int, interval: int, start: Point | None = None
    ) -> None:
        """Send a subscriber all events after ``start``, or after now, for as long as it is connected.

        If ``start`` is of another history, the stream begins with a reset. ``until`` is when its key ends.
        Never returns. Raises ``ServerStopping``, ``Overloaded``, ``ReaderTooSlow``, ``StoreUnavailable``, or what the
        subscriber raised.
        """
        stream = self._open(subscriber, project_id, until, interval, start)
        try:
            while True:
                await self._turn(stream)
                more = await self._tell(stream)
                again = more or stream.place is Place.QUEUED_AGAIN
                stream.place = Place.QUEUED if again else Place.RESTING
                if again:
                    self._give_turn(stream)
        except asyncio.CancelledError:
            if stream.failure is None:
                raise
            raise stream.failure from None
        finally:
            self._forget(stream)

    def say_goodbye(self) -> None:
        """End all streams and refuse new ones, since the server is stopping."""
        self._closed = True
        for stream in self._streams:
            self._end(stream, ServerStopping())

    async def close(self) -> None:
        """End all streams, and wait at most a second for them to finish."""
        self.say_goodbye()
        self._tail.on_move(lambda: None)
        deadline = clocks.monotonic() + int(_FAREWELL * SECOND)
        while self._streams and clocks.monotonic() < deadline:
            await asyncio.sleep(TICK / SECOND)
        if self._ticking:
            self._ticking.cancel()

    def _open(self, subscriber: Subscriber, project_id: str, until: int, interval: int, start: Point | None) -> Stream:
        if self._closed:
            raise ServerStopping
        now, task = self._monotonic(), asyncio.current_task()
        stream = Stream(subscriber, project_id, subscriber.tenant, subscriber.key_id, interval, now, until, start, task)
        if leaver := self._places.take(stream):
            self._end(leaver, overloaded("the server ended the stream to make room for another project"))
            _note_end(leaver, "it made room for another project")
        self._streams.add(stream)
        self._by_project[project_id].add(stream)
        metrics.WATCH_STREAMS.inc()
        stream.resets = self._tail.resets
        # Place the second heartbeat anywhere in the interval, so that streams opened together do not beat together.
        self._schedule(stream, int(random.uniform(TICK, interval)))  # noqa: S311 - no secret
        self._give_turn(stream)
        if self._ticking is None:
            self._tick()
        return stream

    def _forget(self, stream: Stream) -> None:
        self._places.leave(stream)
        self._streams.discard(stream)
        self._by_project[stream.project_id].discard(stream)
        if not self._by_project[stream.project_id]:
            del self._by_project[stream.project_id]
        self._wheel.drop(stream)
        self._late.discard(stream)
        metrics.WATCH_STREAMS.dec()

    def _end(self, stream: Stream, failure: Exception) -> None:
        if stream.become(Phase.ENDING):
            stream.failure = failure
            self._give_turn(stream)  # cancel by turns too: thousands may end together

    # Turns.

    async def _turn(self, stream: Stream) -> None:
        stream.turn = self._running().create_future()
        await stream.turn

    def _give_turn(self, stream: Stream) -> None:
        self._ready.append(stream)
        if not self._giving_turns:
            self._giving_turns = True
            self._running().call_soon(self._give_turns)

    def _give_turns(self) -> None:
        room = TURN
        while self._ready and room > 0:
            stream = self._ready.popleft()
            room -= _CATCHING_UP if stream.phase in (Phase.OPENING, Phase.CATCHING_UP) else 1
            if stream.failure is not None:
                if stream in self._streams and stream.become(Phase.ENDED):
                    stream.task.cancel()  # type: ignore[union-attr]  # it runs in a task
            elif stream.turn and not stream.turn.done():
                stream.turn.set_result(None)
        if self._ready:
            self._running().call_soon(self._give_turns)
        else:
            self._giving_turns = False

    def _queue(self, stream: Stream) -> None:
        if stream.place is not Place.RESTING:
            stream.place = Place.QUEUED_AGAIN
            return
        stream.place = Place.QUEUED
        if stream.resets == self._resets:  # no event between its cursor and our position is for it
            stream.cursor = max(stream.cursor, self._position)
        self._give_turn(stream)

    # New events in the log.

    def _notice_move(self) -> None:
        """Schedule ``_spread`` on the event loop. Called on any thread."""
        if not self._moved:
            self._moved = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._running().call_soon_threadsafe(self._spread)

    def _spread(self) -> None:
        """Queue every stream that receives the new events, and every stream whose key they change."""
        self._moved = False  # reset before reading the position, so that later moves schedule again
        resets, position = self._tail.resets, self._tail.position
        if (resets, position) == (self._resets, self._position):
            return
        news = self._tail.ring.after(self._position, SIZE)
        concerned: Iterable[Stream]
        changed: Iterable[Stream]
        if news is None or resets != self._resets:
            concerned = changed = self._streams
            for stream in concerned:
                stream.become(Phase.CATCHING_UP)  # it is not their fault that memory no longer has the events
        elif news:
            position = news[-1].revision
            projects = {event.project_id for event in news} | {""}
            keys = {event.key_id for event in news}
            concerned = [stream for project in projects for stream in self._by_project.get(project, ())]
            changed = [stream for key in keys for stream in self._places.of_key(key)]
        else:
            return
        for stream in changed:
            stream.judge = True
            self._queue(stream)
        for stream in concerned:
            self._queue(stream)
        self._resets, self._position = resets, position

    # Timers.

    def _tick(self) -> None:
        self._ticking = None
        try:
            self._beat()
            self._end_slow()
        except Exception as failure:
            # The tick must go on, or all streams would stall forever.
            with contextlib.suppress(Exception):
                _log.error("serving the streams failed", error=type(failure).__name__)
        if self._streams:
            self._ticking = self._running().call_later(TICK / SECOND, self._tick)

    def _beat(self) -> None:
        """Queue every stream whose heartbeat is due. If the position is stale, have it confirmed first."""
        self._late.update(self._wheel.due(self._monotonic()))
        if not self._late:
            return
        if self._tail.age > self._fresh:
            self._read(_CONFIRM, self._tail.confirm)
            return
        due, self._late = self._late, set()
        for stream in due:
            stream.beat = True
            self._queue(stream)
            self._schedule(stream, stream.interval)

    def _schedule(self, stream: Stream, span: int) -> None:
        span = min(span, max(0, stream.until - self._clock())) if stream.until != NEVER else span
        self._wheel.put(stream, self._monotonic() + span)

    def _end_slow(self) -> None:
        now = self._monotonic()
        for stream, since in self._writing.items():
            if now - since <= PATIENCE:
                return
            if stream.failure is None:
                self._end(stream, _too_slow(stream))

    # One stream's turn.

    async def _tell(self, stream: Stream) -> bool:
        """Send the next notice, and a heartbeat if one is due and allowed. Return whether there is more to send."""
        await self._check(stream)
        if stream.phase is Phase.OPENING:
            await self._begin(stream)
        resets = self._tail.resets
        if stream.resets != resets:
            void = Notice((), self._tail.position, reset=True)
            stream.resets, stream.cursor = resets, void.cursor
            stream.become(Phase.CATCHING_UP)
            await self._send(stream, void)
            return True
        beat = stream.beat
        # Keep this order: the position, read last, includes all that had been committed by `confirmed`, read first.
        confirmed = self._monotonic() - self._tail.age
        position = self._tail.position
        notice = self._feed.recent(stream.project_id, stream.cursor)
        if notice is None:
            if stream.phase is Phase.LIVE:
                raise _too_slow(stream)
            notice = await self._kept(stream, resets)
        if self._tail.resets != resets:
            return True
        if notice.events or notice.reset:
            if stream.phase is Phase.LIVE and stream.waited > MOST_LAG:
                raise _too_slow(stream)
            await self._send(stream, notice)
        stream.cursor = notice.cursor
        if notice.cursor < position:
            return True
        stream.become(Phase.LIVE)
        stream.waited = 0
        if beat and self._monotonic() - confirmed <= self._fresh:
            stream.beat = False
            await self._send(
                stream, self._feed.nothing(notice.cursor), stream.subscriber.date(confirmed - stream.opened)
            )
        elif beat:
            self._late.add(stream)
        return False

    async def _check(self, stream: Stream) -> None:
        if not stream.judge:
            stream.subscriber.judge()
            return
        stream.judge = False  # reset before reading the key, so that later changes count again
        # The position is part of the name: a read that began before a move must not serve a stream queued by it.
        name = ("key", stream.key_id, self._resets, self._position)
        until = stream.subscriber.judge(await self._answer(stream, name, stream.subscriber.read))
        if until != stream.until:
            stream.until, stream.beat = until, True
            self._schedule(stream, stream.interval)

    async def _begin(self, stream: Stream) -> None:
        """Set where a stream begins. The position must include every change that had returned when it was opened."""
        if self._tail.age >= self._monotonic() - stream.opened:
            if _CONFIRM in self._readings:  # that read may have begun before the stream was opened
                await self._answer(stream, _CONFIRM, self._tail.confirm)
            await self._answer(stream, _CONFIRM, self._tail.confirm)
        if stream.start is None:
            stream.cursor = self._tail.position
        elif await self._holds(stream, stream.start):
            stream.cursor = stream.start.revision
        else:
            stream.resets = _NEVER_MET  # as if it had been open during a reset
        stream.become(Phase.CATCHING_UP)

    async def _holds(self, stream: Stream, point: Point) -> bool:
        lineage = self._tail.lineage
        held = lineage.known(point)
        if held is None:
            (held,) = await self._answer(stream, point, lambda: lineage.holds([point]))
        return held

    async def _kept(self, stream: Stream, resets: int) -> Notice:
        project_id, cursor = stream.project_id, stream.cursor
        name = ("kept", project_id, cursor, resets)
        notice: Notice = await self._answer(stream, name, lambda: self._feed.kept(project_id, cursor))
        return notice

    async def _send(self, stream: Stream, notice: Notice, date: bytes = b"") -> None:
        if notice.rendered is None:
            object.__setattr__(notice, "rendered", stream.subscriber.render(notice))
        began = self._writing[stream] = self._monotonic()
        try:
            await stream.subscriber.write(notice.rendered + date)  # type: ignore[operator]  # it has just been set
        finally:
            del self._writing[stream]
        stream.waited += self._monotonic() - began

    # Database reads.

    async def _answer(self, stream: Stream, name: Hashable, work: Callable[[], Any]) -> Any:
        """Return the result of ``work``, run on a thread once for all streams that ask for ``name`` meanwhile.

        The streams resume in turns.
        """
        reading = self._read(name, work)
        reading.streams.append(stream)
        await self._turn(stream)
        failure = reading.answer.exception()
        if failure is not None:
            raise own(failure)
        return reading.answer.result()

    def _read(self, name: Hashable, work: Callable[[], Any]) -> _Reading:
        reading = self._readings.get(name)
        if reading is None:
            try:
                answer = self._running().run_in_executor(self._blocking, work)
            except RuntimeError:  # the threads have ended, or the system has no more
                raise ServerStopping from None
            reading = self._readings[name] = _Reading(answer)
            answer.add_done_callback(lambda _: self._has_read(name))
        return reading

    def _has_read(self, name: Hashable) -> None:
        reading = self._readings.pop(name)
        if not reading.answer.cancelled():
            reading.answer.exception()  # mark it as retrieved: no stream may be waiting any more
        for stream in reading.streams:
            self._give_turn(stream)

    def _running(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "the hub has not been started"  # noqa: S101
        return self._loop


def _too_slow(stream: Stream) -> ReaderTooSlow:
    _note_end(stream, "its client does not read fast enough")
    return ReaderTooSlow()


def _note_end(stream: Stream, why: str) -> None:
    with contextlib.suppress(Exception):  # a failing log must not change how a stream ends
        _log.info(f"a Watch stream was ended: {why}", key_id=stream.key_id)
