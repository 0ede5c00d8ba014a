"""The hot path: from a presented key to a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from tumbler import keyformat
from tumbler_server import metrics
from tumbler_server.clock import SECOND, Clock
from tumbler_server.errors import InvalidFields, StoreUnavailable, Violation
from tumbler_server.events.tail import Tail
from tumbler_server.keys import record
from tumbler_server.keys.cache import Entry, ProofCache
from tumbler_server.keys.decide import Code, Demand, decide
from tumbler_server.keys.prover import BcryptPool, Check
from tumbler_server.keys.record import Key, Sealed
from tumbler_server.keys.resealer import Resealer
from tumbler_server.keys.secret import Hasher, same
from tumbler_server.keys.usage import Usage
from tumbler_server.store.database import Store


class Question(NamedTuple):
    """A key as it was presented, what for, and how fresh the answer must be.

    ``at_least`` is the oldest revision that the answer may reflect; with ``exactly`` it reflects every change that
    returned before the call, wherever it was made.
    """

    text: str
    demand: Demand = Demand()
    at_least: int = 0
    exactly: bool = False


class View(NamedTuple):
    """What an answer rests on: a position in the log, and how many microseconds ago it was the newest, if too many."""

    position: int
    age: int = 0


class Verdict(NamedTuple):
    """The outcome of a verification; true only when allowed. ``key`` is there only where its secret was proven.

    ``time`` is the instant at which it was decided, by what was known in ``view``.
    """

    code: Code
    time: int
    view: View
    key: Key | None = None

    def __bool__(self) -> bool:
        return self.code is Code.VALID


class _Presented(NamedTuple):
    """A text of a key's form, what it is remembered by, and what is. ``parsed`` is None where it was proven before."""

    text: str
    id: str
    tag: bytes
    entry: Entry | None
    parsed: keyformat.ParsedKey | None


_TELL_EVERY = 10 * SECOND

_log = structlog.get_logger(__name__)

_AFTER_ID = 1 + keyformat.SECRET_LENGTH + keyformat.CHECK_LENGTH
_ID = slice(-keyformat.ID_LENGTH - _AFTER_ID, -_AFTER_ID)


class Verifier:
    """Proves presented keys and decides on them."""

    def __init__(
        self,
        store: Store,
        hasher: Hasher,
        tail: Tail,
        cache: ProofCache,
        pool: BcryptPool,
        resealer: Resealer,
        usage: Usage,
        clock: Clock,
        stale_if_error: int = 0,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._tail = tail
        self._cache = cache
        self._pool = pool
        self._resealer = resealer
        self._usage = usage
        self._clock = clock
        self._stale_if_error = stale_if_error
        self._told_stale = 0

    def verify(self, question: Question, view: View | None = None) -> Verdict:
        """Return the verdict on a presented key, by a view that was taken in the same call, or by one of its own.

        Raises ``InvalidFields`` where the installation has not come as far as it must, ``Overloaded`` where too many
        secrets wait for bcrypt, and ``StoreUnavailable`` where the database does not answer; nothing is decided then.
        """
        found = self._recognise(question.text)
        if found is None:
            return Verdict(Code.MALFORMED, self._clock(), view or View(self._tail.position))
        if view is None or question.exactly or view.position < question.at_least:
            view = self._view(question.at_least, question.exactly)
            if view.position < question.at_least:
                raise InvalidFields(
                    [Violation("consistency.at_least_as_fresh", "names a revision that does not exist")]
                )
        known, key = self._remembered(found)
        if not known:
            (key,) = self._prove([found])
        return self._judge(question.demand, key, view, self._clock())

    def verify_all(self, questions: Sequence[Question], view: View) -> list[Verdict | None]:
        """Return the verdicts on many keys, each as ``verify`` gives it; None where it raises ``InvalidFields``.

        All rest on one view and one instant, and what the cache does not know is read by one query.
        """
        presented = [self._recognise(question.text) for question in questions]
        at_least = max((question.at_least for question in questions), default=0)
        exactly = any(question.exactly for question in questions)
        if exactly or view.position < at_least:
            view = self._view(at_least, exactly)
        keys: list[Key | None] = []
        unknown: dict[str, _Presented] = {}
        for found in presented:
            known, key = (True, None) if found is None else self._remembered(found)
            keys.append(key)
            if not known and found is not None:
                unknown[found.text] = found
        if unknown:
            read = dict(zip(unknown, self._prove(list(unknown.values())), strict=True))
            keys = [
                read[found.text] if found is not None and found.text in read else key
                for found, key in zip(presented, keys, strict=True)
            ]
        now = self._clock()
        malformed = Verdict(Code.MALFORMED, now, view)
        return [
            malformed
            if found is None
            else self._judge(question.demand, key, view, now)
            if question.at_least <= view.position
            else None
            for question, found, key in zip(questions, presented, keys, strict=True)
        ]

    def _recognise(self, text: str) -> _Presented | None:
        """Return what was presented, or None where it has not the form of a key: that needs neither query nor hash."""
        if len(text) > keyformat.MAX_LENGTH:
            return None
        key_id, tag = text[_ID], self._cache.tag(text)
        entry = self._cache.peek(key_id)
        if entry is not None and same(entry.tag, tag):
            return _Presented(text, key_id, tag, entry, None)
        try:
            return _Presented(text, key_id, tag, entry, keyformat.parse(text))
        except keyformat.MalformedKey:
            return None

    def _view(self, at_least: int, exactly: bool) -> View:
        try:
            return View(self._tail.look(at_least, exactly))
        except StoreUnavailable:
            # The explicit opt-in of an operator who would rather be late than down.
            position = self._tail.last_resort(self._stale_if_error) if self._stale_if_error else None
            if position is None or exactly or position < at_least:
                raise
            age = self._tail.age
            self._tell_stale(age)
            return View(position, age)

    def _tell_stale(self, age: int) -> None:
        metrics.STALE_ANSWERS.inc()
        now = self._clock()
        if now >= self._told_stale + _TELL_EVERY:
            self._told_stale = now
            _log.warning("answering without the database, as --stale-if-error allows", seconds=age // SECOND)

    def _remembered(self, found: _Presented) -> tuple[bool, Key | None]:
        """Return whether the cache knows what was presented, and its record. Asked after the view was taken."""
        entry = self._cache.get(found.id)
        if entry is None:
            return False, None
        if not (found.parsed is None if entry is found.entry else same(entry.tag, found.tag)):
            return True, None  # an id has one secret, and this is not it
        return entry.key is not None, entry.key

    def _prove(self, presented: Sequence[_Presented]) -> list[Key | None]:
        """Return the records of keys that the cache does not know, None for each that is no key."""
        generation = self._cache.generation
        metrics.RECORD_READS.inc(len(presented))
        slots = ", ".join("?" * len(presented))
        rows = self._store.read(f"{record.SELECT} WHERE id IN ({slots})", [found.id for found in presented])
        stored = {key.id: (key, sealed) for key, sealed in map(record.from_tuple, rows)}
        proven = [self._proven_cheaply(found, *stored.get(found.id, _NOTHING)) for found in presented]
        doubtful = [place for place, answer in enumerate(proven) if answer is None]
        checks = [self._expensive_check(presented[place], stored) for place in doubtful]
        keys: list[Key | None] = [None] * len(presented)
        answer: bool | None
        try:
            for place, answer in zip(doubtful, self._pool.check(checks), strict=True):
                proven[place] = answer
        finally:
            # What was proven before the pool had enough of this call is not lost: the next one goes on from there.
            for place, (found, answer) in enumerate(zip(presented, proven, strict=True)):
                if answer:
                    keys[place] = self._remember(found, *stored[found.id], generation)
        return keys

    def _proven_cheaply(self, found: _Presented, key: Key | None, sealed: Sealed | None) -> bool | None:
        """Say whether what was presented is the key; None where only bcrypt can tell."""
        if key is None or sealed is None:
            return False
        if found.parsed is None:
            return True
        if key.key_prefix != found.parsed.key_prefix:
            return False
        return self._hasher.check_digest(found.text, sealed)

    def _expensive_check(self, found: _Presented, stored: dict[str, tuple[Key, Sealed]]) -> Check:
        secret, sealed = keyformat.parse(found.text).secret, stored[found.id][1]
        return found.tag, lambda: self._hasher.check_bcrypt(secret, sealed)

    def _remember(self, found: _Presented, key: Key, sealed: Sealed, generation: int) -> Key:
        self._cache.put(key, found.tag, generation)
        if self._hasher.needs_rehash(sealed):
            self._resealer.later(key.id, found.text, keyformat.parse(found.text).secret, sealed)
        return key

    def _judge(self, demand: Demand, key: Key | None, view: View, now: int) -> Verdict:
        code = decide(key, demand, now)
        if code is Code.VALID and key is not None:
            self._usage.note(key.id, now)
        return Verdict(code, now, view, None if code is Code.NOT_FOUND else key)


_NOTHING = (None, None)
