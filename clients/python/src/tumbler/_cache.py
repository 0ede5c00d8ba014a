"""The cache of records from Verify, valid while the stream confirms them. It holds records, never verdicts.

No I/O. Thread-safe.
"""

import functools
import hashlib
import secrets
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from hmac import compare_digest
from typing import NamedTuple

from tumbler import keyformat
from tumbler._settings import SECOND, Settings
from tumbler.decide import Code, Demand, decide
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.verification import NOTHING, Verification

Clock = Callable[[], int]
"""Returns microseconds of the monotonic clock."""

NEVER = 2**63 - 1
"""Later than every instant."""

MAX_CHANGES = 1_024
"""For how many changed keys the last revision is kept."""

MAX_HEARTBEAT_LEAD = SECOND // 2
"""How far the server's clock may run ahead of ours while a stream is open. If it is further ahead, ours stopped."""

ENTRY_BYTES = 1_024
"""Bytes that a cached key counts in addition to its record, for the digest and the entry."""

_steady_ns: Callable[[], int] = (
    functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_BOOTTIME")
    else time.monotonic_ns
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_DEPENDS_ON_DEMAND = frozenset({Code.VALID, Code.ENVIRONMENT_MISMATCH, Code.IP_NOT_ALLOWED, Code.INSUFFICIENT_SCOPE})
"""Codes that depend on the demand. The key itself is neither revoked, superseded, inactive nor expired."""
_UNPROVEN = frozenset({Code.MALFORMED, Code.NOT_FOUND})
"""Codes that say nothing about the key."""
_KNOWN: frozenset[int] = frozenset(Code)


def steady_clock() -> int:
    """Return microseconds of the monotonic clock. If the system allows, it counts while the machine sleeps."""
    return _steady_ns() // 1000


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is cached of a key. Times are microseconds since 1970, by the server's clock."""

    key_id: str
    project_id: str
    environment_id: str = ""
    owner_id: str = ""
    name: str = ""
    scopes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    allowed_cidrs: tuple[str, ...] = ()
    expire_time: int = NEVER
    grace_expire_time: int = NEVER
    active: bool = True
    revoked: bool = False

    def verification(self, code: Code, cached: bool, until: int = 0) -> Verification:
        """Return the result of a verification with this verdict."""
        if code is Code.NOT_FOUND:  # the demand excludes its project
            return Verification(code, cached=cached)
        expire_time = None if self.expire_time == NEVER else _EPOCH + timedelta(microseconds=self.expire_time)
        return Verification(
            code,
            self.key_id,
            self.project_id,
            self.environment_id,
            self.owner_id,
            self.name,
            self.scopes,
            self.metadata,
            expire_time,
            cached,
            until,
        )


class Answer(NamedTuple):
    """The server's answer about a key: a verdict on one demand, and the record to decide any other."""

    code: Code
    record: KeyRecord | None
    clock_offset: int
    """Microseconds from our clock to the server's. Never too few."""
    ttl: int
    sent_at: int
    """Before the call was sent, by our clock."""
    revision: int
    size: int
    """Size of the response in bytes."""

    def verdict(self, demand: Demand, now: int, was_sent: bool) -> Verification:
        """Return the verdict on a demand. ``was_sent``: the server decided this demand, apart from the projects."""
        code = self.code
        if self.record is None:
            return Verification(code)
        if demand.project_ids and self.record.project_id not in demand.project_ids:
            return Verification(Code.NOT_FOUND)
        if not was_sent and code in _DEPENDS_ON_DEMAND:
            code = decide(self.record, demand, now + self.clock_offset)
        return self.record.verification(code, cached=False, until=self.sent_at + self.ttl)


def read_answer(response: pb.VerifyResponse, key: str, demand: Demand, sent_at: int) -> Answer:
    """Return what a response says about a presented key and the demand that was sent.

    ``sent_at`` is when the call was sent, by our clock.

    Raises:
        ValueError: This version does not understand the response, or it contradicts itself.

    """
    code = Code(response.code) if int(response.code) in _KNOWN else Code.UNSPECIFIED
    if response.valid != (code is Code.VALID):
        raise ValueError("the answer contradicts itself")
    check_time, record = 0, None
    if code not in _UNPROVEN:
        if response.key_id != peek_id(key):
            raise ValueError("the answer is about another key")
        if code is not Code.UNSPECIFIED:
            if not response.HasField("check_time"):
                raise ValueError("the answer does not say when it was checked")
            check_time = response.check_time.ToMicroseconds()
        record = KeyRecord(
            response.key_id,
            response.project_id,
            response.environment_id,
            response.owner_id,
            response.name,
            tuple(response.scopes),
            types.MappingProxyType(dict(response.metadata)),
            tuple(response.allowed_cidrs),
            response.expire_time.ToMicroseconds() if response.HasField("expire_time") else NEVER,
            response.grace_expire_time.ToMicroseconds() if response.HasField("grace_expire_time") else NEVER,
        )
        if code in _DEPENDS_ON_DEMAND and decide(record, demand._replace(project_ids=()), check_time) is not code:
            raise ValueError("the answer's record does not give its verdict")
    ttl = response.cache_ttl.ToMicroseconds()
    return Answer(code, record, check_time - sent_at, ttl, sent_at, response.revision, response.ByteSize())


def peek_id(key: str) -> str:
    """Return the part of the text that is the id if the text is a key."""
    return key[-66:-50]


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes = field(repr=False)
    record: KeyRecord
    valid_verdict: Verification
    expires_at: int
    clock_offset: int
    size: int


class Position(NamedTuple):
    """What the stream had delivered when a call began."""

    generation: int
    change_count: int
    cursor: str
    revision: int = 0
    """The highest revision of the key's events. 0: none is known."""


class Cache:
    """The records of recently presented keys, the freshness of the stream, and the rule that joins the two."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._max_staleness = int(settings.max_staleness * SECOND)
        self._heartbeat = int(settings.heartbeat * SECOND)
        self._fixed_ttl = None if settings.fixed_ttl is None else int(settings.fixed_ttl * SECOND)
        self._max_entries = settings.cache_size if settings.watch or settings.fixed_ttl is not None else 0
        self._max_bytes = settings.cache_bytes
        self._bytes = 0
        self._keyed_hash = hashlib.blake2b(key=secrets.token_bytes(32), digest_size=32)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._revision_floor = 0
        self._generation = 0
        self._change_count = 0
        self._fresh_until = -NEVER if self._fixed_ttl is None else NEVER
        self._lock = threading.Lock()
        self.cursor = ""
        """The position in the stream. Empty: start over."""
        self.on_change: Callable[[str | None], None] = lambda _: None
        """Called with the id of each key that is evicted because it changed or may have changed. None: all keys."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def fresh_until(self) -> int:
        """Until when the last heartbeat keeps the cache fresh."""
        return self._fresh_until

    def lookup(self, key: str, demand: Demand) -> Verification | None:
        """Return the verdict on a cached key, or None if the server must decide.

        It takes no lock: each operation on the dictionary is atomic, and an entry never changes.
        """
        key_id = key[-66:-50]  # as in id_in; if this is not a key, no entry has its digest
        entry = self._entries.get(key_id)
        if entry is None:
            return None
        now = self._clock()
        if now >= self._fresh_until or now >= entry.expires_at:
            return None
        if not compare_digest(self.digest(key), entry.digest):
            # An id has one key, and this is not it.
            return Verification(Code.NOT_FOUND, cached=True) if keyformat.is_well_formed(key) else None
        try:  # noqa: SIM105 - suppress() costs as much as all the rest of this function
            self._entries.move_to_end(key_id)
        except KeyError:
            pass  # evicted a moment ago, after this call began
        code = decide(entry.record, demand, now + entry.clock_offset)
        if code is Code.VALID:
            return entry.valid_verdict
        return entry.record.verification(code, cached=True)

    def position(self, key: str = "") -> Position:
        """Return what the stream has delivered so far, in general and about a presented key."""
        with self._lock:
            return Position(self._generation, self._change_count, self.cursor, self._changes.get(peek_id(key), 0))

    def contradicts(self, answer: Answer, position: Position) -> bool:
        """Return whether an answer is older than what the stream had delivered about its key when the call was sent."""
        is_older = answer.record is not None and answer.revision < position.revision
        return is_older and self._generation == position.generation

    def unchanged_since(self, position: Position) -> bool:
        """Return whether a caller may share the answer to a call from then: fresh, and nothing was delivered since."""
        return (
            self._clock() < self._fresh_until
            and self._is_bound(position)
            and (position.generation, position.change_count) == (self._generation, self._change_count)
        )

    def is_too_old(self, answer: Answer, now: int) -> bool:
        """Return whether an answer decides nothing any more: the key may have changed since the call was sent."""
        return now - answer.sent_at > self._max_staleness

    def store(self, key: str, answer: Answer, position: Position) -> None:
        """Cache an answer for its lifetime, if nothing that the stream delivered since the call began contradicts it.

        An answer that denies the key itself evicts it, whatever the stream has delivered so far.
        """
        record, ttl, size = answer.record, answer.ttl, answer.size + ENTRY_BYTES
        if answer.code not in _DEPENDS_ON_DEMAND:
            self._evict_denied(key)
            return
        if record is None or ttl <= 0 or not self._max_entries or size > self._max_bytes:
            return
        if not self._is_bound(position):
            return
        if self._fixed_ttl is not None:
            ttl = min(ttl, self._fixed_ttl)
        expires_at = answer.sent_at + ttl
        valid_verdict = record.verification(Code.VALID, cached=True, until=expires_at)
        entry = _Entry(self.digest(key), record, valid_verdict, expires_at, answer.clock_offset, size)
        with self._lock:
            now = self._clock()
            if self._generation != position.generation or now >= self._fresh_until or self.is_too_old(answer, now):
                return
            if answer.revision < self._changes.get(record.key_id, self._revision_floor):
                return
            self._evict(record.key_id)
            self._entries[record.key_id] = entry
            self._bytes += size
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                self._bytes -= self._entries.popitem(last=False)[1].size

    def apply(self, response: pb.WatchResponse, first_without_cursor: bool, requested_at: int) -> bool:
        """Apply a message of a stream that was requested at ``requested_at``. Return whether to keep the stream.

        ``first_without_cursor``: it is the first message of a stream that started without a cursor.

        Only a heartbeat says that the stream has delivered everything, so only a heartbeat renews freshness. It may
        have travelled or waited for long: it counts from the instant that it confirms.
        """
        with self._lock:
            if response.reset or first_without_cursor:
                self._reset()
            for event in response.events:
                self._change_count += 1
                self._evict(event.key_id)
                self.on_change(event.key_id)
                self._changes[event.key_id] = max(event.revision, self._changes.get(event.key_id, 0))
                self._changes.move_to_end(event.key_id)
                if len(self._changes) > MAX_CHANGES:
                    self._revision_floor = max(self._revision_floor, self._changes.popitem(last=False)[1])
            if response.cursor:
                self.cursor = response.cursor
            if response.events or response.reset:
                return True
            return self._apply_heartbeat(response, requested_at)

    def drop_cursor(self, cursor: str) -> None:
        """Drop a cursor that the server does not know, evict everything, and cache nothing until the next heartbeat.

        If the stream has since moved on to another cursor, the server knew that one, and nothing happens.
        """
        with self._lock:
            if self.cursor == cursor:
                self._reset()
                self._fresh_until = -NEVER
                self.cursor = ""

    def invalidate(self) -> None:
        """Evict everything, and cache nothing until the next heartbeat."""
        with self._lock:
            self._reset()
            self._fresh_until = -NEVER

    def abandon(self) -> None:
        """Invalidate, in a forked process. The thread that held the lock does not exist here."""
        self._lock = threading.Lock()
        self.invalidate()

    def _apply_heartbeat(self, heartbeat: pb.WatchResponse, requested_at: int) -> bool:
        now = self._clock()
        if heartbeat.HasField("stream_age"):
            # The server opened the stream after we requested it, so this instant is never too late.
            confirmed_at = requested_at + heartbeat.stream_age.ToMicroseconds()
            is_ahead = confirmed_at > now + MAX_HEARTBEAT_LEAD  # this machine was stopped, and its clock with it
            if is_ahead or heartbeat.stream_age.ToNanoseconds() < 0:
                self._fresh_until = -NEVER
                return False
        elif requested_at < self._fresh_until <= now:
            return False  # from an older server: it may have waited for as long as we received nothing
        else:
            confirmed_at = now
        age = max(0, now - confirmed_at)
        self._fresh_until = max(self._fresh_until, now - age + self._max_staleness)
        # If freshness would lapse before the next heartbeat, the stream is slow, or took long to open.
        return age <= max(SECOND, self._max_staleness - self._heartbeat)

    def _is_bound(self, position: Position) -> bool:
        """Return whether the call had a cursor: without one, an answer may be older than what the stream delivered."""
        return bool(position.cursor) or self._fixed_ttl is not None

    def _evict_denied(self, key: str) -> None:
        with self._lock:
            entry = self._entries.get(peek_id(key))
            if entry is not None and compare_digest(entry.digest, self.digest(key)):
                self._evict(entry.record.key_id)
                self.on_change(entry.record.key_id)

    def _evict(self, key_id: str) -> None:
        entry = self._entries.pop(key_id, None)
        if entry is not None:
            self._bytes -= entry.size

    def _reset(self) -> None:
        self._entries.clear()
        self._bytes = 0
        self._changes.clear()
        # After an older backup was restored, revisions count from there again.
        self._revision_floor = 0
        self._generation += 1
        self.on_change(None)

    def digest(self, key: str) -> bytes:
        """Return the digest of a key, made with a random key of this process."""
        keyed = self._keyed_hash.copy()
        keyed.update(key.encode())
        return keyed.digest()
