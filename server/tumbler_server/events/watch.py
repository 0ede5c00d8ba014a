"""Fan-out: one thread sees what is new in the log, a few hand it to thousands of streams.

A stream has no queue, only its place in the log. Whenever it is served it is told all that has come since, so that a
slow one costs nothing but its own lag, and changes in quick succession become one notice.

A heartbeat, which is a notice without events, is a promise: there was nothing else to tell a moment ago. So none is
sent while that is not known, for instance since the database does not answer; listeners then stop trusting what they
remember.
"""

import contextlib
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from tumbler_server import clock as clocks
from tumbler_server import metrics
from tumbler_server.clock import NEVER, SECOND, Clock
from tumbler_server.errors import Overloaded, ReaderTooSlow, ServerStopping, StoreUnavailable
from tumbler_server.events.feed import Feed, Notice
from tumbler_server.events.ring import SIZE
from tumbler_server.events.senders import MOST_STUCK, Senders
from tumbler_server.events.tail import Tail
from tumbler_server.events.wheel import TICK, Wheel
from tumbler_server.store.database import Store

FRESH = SECOND // 2
"""How long ago it may be that nothing else was to tell, when a heartbeat is sent."""

PATIENCE = 5 * SECOND
"""How long a listener may take for one notice; after as much again its connection is cut without a word."""

IMPATIENCE = SECOND
"""How long that is while more listeners than there is room for do not take theirs, and others wait for it."""

MOST_LAG = 30 * SECOND
"""How long a listener that was up to date may keep us waiting until it is so again."""

_FAREWELL = 1.0
"""Seconds that listeners have to take note of the server's end."""

_log = structlog.get_logger(__name__)


class Line(Protocol):
    """What leads to a listener; only ``send`` may block."""

    def send(self, notice: Notice) -> None:
        """Hand a notice over; return once it was taken, or never will be."""

    def end(self, failure: Exception) -> None:
        """Say why it ends. Called once at the most, maybe while a notice is being handed over."""

    def cut(self) -> None:
        """End it at once, and what is being handed over with it."""

    def check(self, anew: bool) -> int:
        """Return the instant until which the listener may listen, ``anew`` by its key as it stands in the database.

        Raises what to end with where it may not.
        """


@dataclass(eq=False, slots=True)
class Stream:
    """A listener, and how far it has come. What it is told are events of one project, or of all (``""``).

    It is served by one thread at a time; the hub's lock guards what others change.
    """

    line: Line
    project_id: str
    key_id: str
    interval: int
    opened: int
    until: int
    cursor: int = 0
    start: int | None = None
    begun: bool = False
    resets: int = 0
    live: bool = False
    """Whether it has ever been told everything."""
    judge: bool = True
    """Whether its key has changed."""
    beat: bool = True
    """Whether a heartbeat is due; the first is, as soon as everything has been told."""
    queued: bool = True
    again: bool = False
    over: bool = False
    cut: bool = False
    since: int = 0
    waited: int = 0


class Hub:
    """All streams of a process, ``most`` at the same time."""

    def __init__(
        self, store: Store, tail: Tail, clock: Clock, most: int, max_staleness: int, uptime: Clock = clocks.uptime
    ) -> None:
        self._tail = tail
        self._clock = clock
        self._uptime = uptime
        self._most = most
        self._fresh = min(FRESH, max_staleness)
        self._feed = Feed(store, tail)
        self._senders: Senders[Stream] = Senders(self._serve, uptime)
        self._confirming = threading.Lock()
        self._lock = threading.Lock()  # held for moments, never while anything is sent or read
        self._streams: set[Stream] = set()
        self._by_project: defaultdict[str, set[Stream]] = defaultdict(set)
        self._by_key: defaultdict[str, set[Stream]] = defaultdict(set)
        self._wheel: Wheel[Stream] = Wheel(uptime())
        self._late: set[Stream] = set()
        self._gone: deque[Stream] = deque()
        self._resets, self._position = tail.resets, tail.position
        self._closed = False
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        tail.on_move(self._wake.set)

    def __len__(self) -> int:
        return len(self._streams)

    def start(self) -> None:
        """Begin to tell."""
        self._senders.start()
        self._thread.start()

    def open(
        self, line: Line, project_id: str, key_id: str, until: int, interval: int, start: int | None = None
    ) -> Stream:
        """Begin a stream after the revision ``start``, or now; ``key_id`` is the listener's, good ``until`` an instant.

        Nothing is read and nothing sent before this returns. Raises ``Overloaded`` and ``ServerStopping``.
        """
        now = self._uptime()
        stream = Stream(line, project_id, key_id, interval, now, until, start=start)
        with self._lock:
            self._sweep()
            if self._closed:
                raise ServerStopping
            if len(self._streams) >= self._most:
                raise Overloaded(retry_after=SECOND)
            self._streams.add(stream)
            self._by_project[project_id].add(stream)
            self._by_key[key_id].add(stream)
            metrics.WATCH_STREAMS.inc()
            # After its first word, anywhere in the interval: streams that are opened together are not to beat together.
            self._schedule(stream, int(random.uniform(TICK, interval)))  # noqa: S311 - no secret
            stream.resets = self._tail.resets
            self._senders.put(stream)
        self._wake.set()
        return stream

    def gone(self, stream: Stream) -> None:
        """Say that a stream's listener is not there any more. Returns at once, and may be called from anywhere."""
        stream.over = True
        self._gone.append(stream)
        self._wake.set()

    def say_goodbye(self) -> None:
        """Tell all listeners, and each that still comes, that the server ends."""
        with self._lock:
            self._closed = True
            streams = tuple(self._streams)
        for stream in streams:
            self._end(stream, ServerStopping())

    def close(self) -> None:
        """Say goodbye, cut off who does not take note of it, and end."""
        self.say_goodbye()
        deadline = time.monotonic() + _FAREWELL
        while self._thread.is_alive() and self._streams and time.monotonic() < deadline:
            time.sleep(TICK / SECOND)
        for stream in tuple(self._streams):
            self._cut(stream)
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._senders.close()
        with self._lock:
            self._gone.extend(self._streams)
            self._sweep()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(TICK / SECOND if self._streams else None)
            self._wake.clear()
            try:
                self._look()
            except Exception as failure:
                # The streams would stand still for ever; so this thread must not end.
                _log.error("looking after the streams failed", error=type(failure).__name__)
                time.sleep(1.0)

    def _look(self) -> None:
        with self._lock:
            self._sweep()
            self._spread()
            self._beat()
        self._tend()

    def _sweep(self) -> None:
        """Forget the streams that have ended."""
        while self._gone:
            stream = self._gone.popleft()
            if stream in self._streams:
                self._streams.discard(stream)
                for index, name in ((self._by_project, stream.project_id), (self._by_key, stream.key_id)):
                    index[name].discard(stream)
                    if not index[name]:
                        del index[name]
                self._wheel.drop(stream)
                self._late.discard(stream)
                metrics.WATCH_STREAMS.dec()

    def _spread(self) -> None:
        """Have everybody served whom the changes since the last look concern, or whose key they are of."""
        resets, position = self._tail.resets, self._tail.position
        if (resets, position) == (self._resets, self._position):
            return
        news = self._tail.ring.after(self._position, SIZE)
        concerned: Iterable[Stream]
        changed: Iterable[Stream]
        if news is None or resets != self._resets:
            concerned = changed = tuple(self._streams)
            for stream in concerned:
                stream.live = False  # what memory does not have any more is no fault of theirs
        elif news:
            position = news[-1].revision
            projects = {event.project_id for event in news} | {""}
            keys = {event.key_id for event in news}
            concerned = [stream for project in projects for stream in self._by_project.get(project, ())]
            changed = [stream for key in keys for stream in self._by_key.get(key, ())]
        else:
            return
        for stream in changed:
            stream.judge = True
            self._queue(stream)
        for stream in concerned:
            self._queue(stream)
        self._resets, self._position = resets, position

    def _beat(self) -> None:
        """Have everybody served whose heartbeat is due, if it may be sent; else one, who finds out whether it may."""
        self._late.update(self._wheel.due(self._uptime()))
        if not self._late:
            return
        if self._tail.age <= self._fresh:
            due, self._late = self._late, set()
        elif not self._confirming.locked():
            due = {self._late.pop()}
        else:
            return
        for stream in due:
            stream.beat = True
            self._queue(stream)
            self._schedule(stream, stream.interval)

    def _schedule(self, stream: Stream, span: int) -> None:
        span = min(span, max(0, stream.until - self._clock())) if stream.until != NEVER else span
        self._wheel.put(stream, self._uptime() + span)

    def _queue(self, stream: Stream) -> None:
        if stream.queued:
            stream.again = True
        elif not stream.over:
            stream.queued = True
            if stream.resets == self._resets:  # between its cursor and our position was nothing that concerns it
                stream.cursor = max(stream.cursor, self._position)
            self._senders.put(stream)

    def _tend(self) -> None:
        stuck = self._senders.stuck()
        too_many = len(stuck) - MOST_STUCK
        for place, (waiting, stream) in enumerate(stuck):
            crowded = place < too_many and waiting > IMPATIENCE
            if crowded or waiting > PATIENCE:
                self._end(stream, ReaderTooSlow())
            if crowded or waiting > 2 * PATIENCE:
                self._cut(stream)

    def _end(self, stream: Stream, failure: Exception) -> None:
        with self._lock:
            if stream.over:
                return
            stream.over = True
        if isinstance(failure, ReaderTooSlow):
            _log.info("a Watch stream is ended: it is not read", key_id=stream.key_id)
        try:
            stream.line.end(failure)
        except Exception as another:
            _log.error("ending a stream failed", error=type(another).__name__)

    def _cut(self, stream: Stream) -> None:
        if not stream.cut:
            stream.cut = True
            stream.line.cut()

    def _serve(self, stream: Stream) -> None:
        """Tell a stream what comes next; it is served again if that is not all. By a sender's thread."""
        more = False
        try:
            if not stream.over:
                more = self._tell(stream)
        except Exception as failure:
            self._end(stream, failure)
        with self._lock:
            stream.queued = (more or stream.again) and not stream.over
            stream.again = False
            if stream.queued:
                self._senders.put(stream)

    def _tell(self, stream: Stream) -> bool:
        """Send what comes next, and a heartbeat if one is due and may be sent; say whether there is more."""
        self._check(stream)
        if not stream.begun:
            self._begin(stream)
        resets = self._tail.resets
        if stream.resets != resets:
            void = Notice((), self._tail.position, reset=True)
            stream.resets, stream.cursor, stream.live = resets, void.cursor, False
            self._send(stream, void)
            return True
        beat = stream.beat
        # In this order: what is read last holds all that had been committed by the instant that is asked for first.
        confirmed = self._confirm() if beat else 0
        position = self._tail.position
        notice = self._feed.recent(stream.project_id, stream.cursor)
        if notice is None:
            if stream.live:
                raise ReaderTooSlow
            notice = self._feed.kept(stream.project_id, stream.cursor)
        if self._tail.resets != resets:
            return True
        if notice.events or notice.reset:
            if stream.live and stream.waited > MOST_LAG:
                raise ReaderTooSlow
            self._send(stream, notice)
        stream.cursor = notice.cursor
        if notice.cursor < position:
            return True
        stream.live, stream.waited = True, 0
        if beat and self._uptime() - confirmed <= self._fresh:
            stream.beat = False
            self._send(stream, Notice((), notice.cursor) if notice.events or notice.reset else notice)
        elif beat:
            with self._lock:
                if not stream.over:
                    self._late.add(stream)
        return False

    def _check(self, stream: Stream) -> None:
        if not stream.judge:
            stream.line.check(anew=False)
            return
        stream.judge = False  # before the key is read, so that what comes later counts again
        until = stream.line.check(anew=True)
        with self._lock:
            if until != stream.until and not stream.over:
                stream.until, stream.beat = until, True
                self._schedule(stream, stream.interval)

    def _begin(self, stream: Stream) -> None:
        """Find out where a stream begins: not before anything that had returned when it was opened."""
        if self._tail.age >= self._uptime() - stream.opened:
            self._tail.confirm()
        stream.cursor = self._tail.position if stream.start is None else stream.start
        stream.begun = True

    def _confirm(self) -> int:
        """Return when the position was the newest; if that is too long ago, ask the database first."""
        if self._tail.age > self._fresh and self._confirming.acquire(blocking=False):
            try:
                with contextlib.suppress(StoreUnavailable):
                    self._tail.confirm()
            finally:
                self._confirming.release()
        return self._uptime() - self._tail.age

    def _send(self, stream: Stream, notice: Notice) -> None:
        began = stream.since = self._uptime()
        try:
            stream.line.send(notice)
        finally:
            stream.since = 0
        stream.waited += self._uptime() - began
