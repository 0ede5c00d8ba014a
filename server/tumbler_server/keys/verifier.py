"""The hot path: from a presented key to a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from tumbler import keyformat
from tumbler.decide import Code, Demand, decide
from tumbler_server import metrics
from tumbler_server.clock import SECOND, Clock
from tumbler_server.errors import InvalidFields, StoreUnavailable, Violation
from tumbler_server.events.tail import Tail
from tumbler_server.keys import record
from tumbler_server.keys.cache import ProofCache
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


class _Unknown(NamedTuple):
    """A text of a key's form whose record has to be read. ``parsed`` is None where it was proven before."""

    text: str
    id: str
    tag: bytes
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
        text, demand, at_least, exactly = question
        if view is None or exactly or view.position < at_least:
            view = self._view(at_least, exactly)
            if view.position < at_least:
                raise InvalidFields(
                    [Violation("consistency.at_least_as_fresh", "names a revision that does not exist")]
                )
        key = self._recall(text)
        if isinstance(key, _Unknown):
            (key,) = self._prove([key])
        return self._judge(key, demand, view, self._clock())

    def verify_all(self, questions: Sequence[Question], view: View) -> list[Verdict | None]:
        """Return the verdicts on many keys, each as ``verify`` gives it; None where it raises ``InvalidFields``.

        All rest on one view and one instant, and what the cache does not know is read by one query.
        """
        at_least = max((question.at_least for question in questions), default=0)
        exactly = any(question.exactly for question in questions)
        if exactly or view.position < at_least:
            view = self._view(at_least, exactly)
        recalled = [self._recall(question.text) for question in questions]
        unknown = {key.text: key for key in recalled if isinstance(key, _Unknown)}
        read = dict(zip(unknown, self._prove(list(unknown.values())), strict=True)) if unknown else {}
        now = self._clock()
        return [
            self._judge(read[key.text] if isinstance(key, _Unknown) else key, question.demand, view, now)
            if question.at_least <= view.position
            else None
            for question, key in zip(questions, recalled, strict=True)
        ]

    def _recall(self, text: str) -> "Key | Code | _Unknown | None":
        """Return what is known of a presented key. To be asked after the view was taken.

        That is its record, or None where it is none; MALFORMED, which needs neither query nor hash; or what to ask.
        """
        if len(text) > keyformat.MAX_LENGTH:
            return Code.MALFORMED
        key_id, tag = text[_ID], self._cache.tag(text)
        entry = self._cache.get(key_id)
        if entry is not None and same(entry.tag, tag):
            return entry.key or _Unknown(text, key_id, tag, None)
        try:
            parsed = keyformat.parse(text)
        except keyformat.MalformedKey:
            return Code.MALFORMED
        # An id has one secret, and if it is known, this is not it.
        return _Unknown(text, key_id, tag, parsed) if entry is None else None

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

    def _prove(self, asked: Sequence[_Unknown]) -> list[Key | None]:
        """Return the records of keys that the cache does not know, None for each that is no key."""
        generation = self._cache.generation
        metrics.RECORD_READS.inc(len(asked))
        slots = ", ".join("?" * len(asked))
        rows = self._store.read(f"{record.SELECT} WHERE id IN ({slots})", [found.id for found in asked])
        stored = {key.id: (key, sealed) for key, sealed in map(record.from_tuple, rows)}
        proven = [self._proven_cheaply(found, *stored.get(found.id, _NOTHING)) for found in asked]
        doubtful = [place for place, answer in enumerate(proven) if answer is None]
        checks = [self._expensive_check(asked[place], stored) for place in doubtful]
        keys: list[Key | None] = [None] * len(asked)
        answer: bool | None
        try:
            for place, answer in zip(doubtful, self._pool.check(checks), strict=True):
                proven[place] = answer
        finally:
            # What was proven before the pool had enough of this call is not lost: the next one goes on from there.
            for place, (found, answer) in enumerate(zip(asked, proven, strict=True)):
                if answer:
                    keys[place] = self._remember(found, *stored[found.id], generation)
        return keys

    def _proven_cheaply(self, found: _Unknown, key: Key | None, sealed: Sealed | None) -> bool | None:
        """Say whether what was presented is the key; None where only bcrypt can tell."""
        if key is None or sealed is None:
            return False
        if found.parsed is None:
            return True
        if key.key_prefix != found.parsed.key_prefix:
            return False
        return self._hasher.check_digest(found.text, sealed)

    def _expensive_check(self, found: _Unknown, stored: dict[str, tuple[Key, Sealed]]) -> Check:
        secret, sealed = keyformat.parse(found.text).secret, stored[found.id][1]
        return found.tag, lambda: self._hasher.check_bcrypt(secret, sealed)

    def _remember(self, found: _Unknown, key: Key, sealed: Sealed, generation: int) -> Key:
        self._cache.put(key, found.tag, generation)
        if self._hasher.needs_rehash(sealed):
            self._resealer.later(key.id, found.text, keyformat.parse(found.text).secret, sealed)
        return key

    def _judge(self, key: Key | Code | None, demand: Demand, view: View, now: int) -> Verdict:
        if isinstance(key, Code):
            return Verdict(key, now, view)
        code = decide(key, demand, now)
        if code is Code.NOT_FOUND or key is None:
            return Verdict(code, now, view)
        if code is Code.VALID:
            self._usage.note(key.id, now)
        return Verdict(code, now, view, key)


_NOTHING = (None, None)
