"""Verification, the hot path: from a presented key to a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from tumbler import keyformat
from tumbler.decide import Code, Demand, decide
from tumbler_server import metrics
from tumbler_server.clock import Clock
from tumbler_server.errors import InvalidFields, StoreUnavailable, Violation
from tumbler_server.freshness.tail import Tail
from tumbler_server.keys import evidence, record
from tumbler_server.keys.record import Key
from tumbler_server.secrets.opaque_tokens import START, Point
from tumbler_server.secrets.secret import HashedSecret, Hasher, same
from tumbler_server.store.database import Store
from tumbler_server.trouble import Trouble
from tumbler_server.verify.cache import ProofCache
from tumbler_server.verify.first_use import FirstUses
from tumbler_server.verify.rehasher import Rehasher
from tumbler_server.verify.usage import Usage


class Question(NamedTuple):
    """A presented key, the demand on it, and how fresh the answer must be.

    ``at_least`` is the oldest point of the log that the answer may reflect. With ``fully_consistent``, the answer
    reflects every change that returned before the call, on any server.
    """

    text: str
    demand: Demand = Demand()
    at_least: Point = START
    fully_consistent: bool = False

    def __repr__(self) -> str:
        # Without the key.
        return f"Question(demand={self.demand}, at_least={self.at_least}, fully_consistent={self.fully_consistent})"


class View(NamedTuple):
    """What an answer rests on: a position in the log. ``age`` is its age in microseconds if stale, otherwise 0."""

    position: int
    age: int = 0


class Verdict(NamedTuple):
    """The outcome of a verification. True only if the key is valid. ``key`` is set only if its secret was proven.

    ``time`` is when the verdict was given, based on ``view``.
    ``any_project`` means that the demand accepted keys of any project.
    """

    code: Code
    time: int
    view: View
    key: Key | None = None
    any_project: bool = False

    def __bool__(self) -> bool:
        return self.code is Code.VALID


class Unknown(NamedTuple):
    """A well-formed key whose record must be read. ``parsed`` is None if the key was proven before."""

    text: str
    id: str
    tag: bytes
    parsed: keyformat.ParsedKey | None

    def __repr__(self) -> str:
        return f"Unknown(id={self.id!r})"  # without the key


class Doubtful(NamedTuple):
    """A presented key without a usable digest. Only bcrypt can prove it."""

    asked: Unknown
    key: Key
    hashed: HashedSecret
    generation: int


_AFTER_ID = 1 + keyformat.SECRET_LENGTH + keyformat.CHECK_LENGTH
_ID = slice(-keyformat.ID_LENGTH - _AFTER_ID, -_AFTER_ID)


class Verifier:
    """Proves presented keys and gives verdicts on them."""

    def __init__(
        self,
        store: Store,
        hasher: Hasher,
        tail: Tail,
        cache: ProofCache,
        rehasher: Rehasher,
        usage: Usage,
        first_uses: FirstUses,
        clock: Clock,
        stale_if_error: int = 0,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._tail = tail
        self._cache = cache
        self._rehasher = rehasher
        self._usage = usage
        self._first_uses = first_uses
        self._clock = clock
        self._stale_if_error = stale_if_error
        self._altered = Trouble("a key is refused: its row is not as its last event says; run `audit verify`")

    def verify(self, question: Question, view: View | None = None) -> Verdict:
        """Return the verdict on a presented key, based on a view taken in the same call or on a new one.

        Runs all stages on the calling thread. ``rpc.hotpath`` runs them on an event loop.
        Raises ``InvalidFields`` if the question names a change that is not in the log, and ``StoreUnavailable`` if
        the database does not answer. There is no verdict then.
        """
        _, _, at_least, fully_consistent = question
        if view is None or fully_consistent or view.position < at_least.revision:
            view = self._view(at_least.revision, fully_consistent)
        if not reached(question, view) or (at_least.mark and not all(self._tail.lineage.holds([at_least]))):
            raise unknown_change()
        key = self.recall(question.text)
        if isinstance(key, Unknown):
            (found,) = self.read([key])
            key = self.prove(found) if isinstance(found, Doubtful) else found
        return self.judge(key, question.demand, view, self._clock())

    def now(self) -> int:
        """Return the current time that verdicts are based on."""
        return self._clock()

    def used(self, key: Key) -> None:
        """Record that a key was used to call this service."""
        if key.id:
            self._usage.note(key.id, self._clock())
            if key.awaits_first_use:
                self._first_uses.note(key)

    def recall(self, text: str) -> Key | Code | Unknown | None:
        """Return what memory knows of a presented key. Reads nothing. Call it after taking the view.

        Returns the key's record; None if the secret is wrong; MALFORMED, which takes no query and no bcrypt; or
        ``Unknown`` if the record must be read.
        """
        if len(text) > keyformat.MAX_LENGTH:
            return Code.MALFORMED
        key_id, tag = text[_ID], self._cache.tag(text)
        entry = self._cache.get(key_id)
        if entry is not None and same(entry.tag, tag):
            return entry.key or Unknown(text, key_id, tag, None)
        try:
            parsed = keyformat.parse(text)
        except keyformat.MalformedKey:
            return Code.MALFORMED
        # An id has one secret. If that is cached, this is a wrong one.
        return Unknown(text, key_id, tag, parsed) if entry is None else None

    def remembers(self, key: Key) -> bool:
        """Return whether a record recalled earlier is still the cached one."""
        entry = self._cache.get(key.id)
        return entry is not None and entry.key is key

    def read(self, asked: Sequence[Unknown]) -> list[Key | Doubtful | None]:
        """Read the records of keys that are not cached, in one query. Return None for each that is not a key.

        A key whose row does not match its last event counts as none: if cached, it would outlive the row.
        Raises ``StoreUnavailable``.
        """
        generation = self._cache.generation
        metrics.RECORD_READS.inc(len(asked))
        stored = {}
        for row in evidence.with_records(self._store.read, [unknown.id for unknown in asked]):
            if altered := evidence.altered_in(row):
                metrics.ALTERED_RECORDS.inc()
                self._altered.met(key_id=row[evidence.ID], fields=",".join(altered))
            else:
                self._altered.passed()
                key, hashed = record.from_tuple(row[evidence.OF_RECORD])
                stored[key.id] = key, hashed
        return [self._proven(unknown, stored.get(unknown.id), generation) for unknown in asked]

    def prove(self, doubtful: Doubtful) -> Key | None:
        """Return the record of a presented key if bcrypt proves it, otherwise None."""
        metrics.BCRYPT_RUNS.inc()
        asked, key, hashed, generation = doubtful
        secret = keyformat.parse(asked.text).secret
        if not self._hasher.check_bcrypt(secret, hashed):
            return None
        return self._remember(asked, key, hashed, generation)

    def judge(self, key: Key | Code | None, demand: Demand, view: View, now: int) -> Verdict:
        """Return the verdict on a presented key, and record its use if valid."""
        any_project = not demand.project_ids
        if isinstance(key, Code):
            return Verdict(key, now, view, None, any_project)
        code = decide(key, demand, now)
        if code is Code.NOT_FOUND or key is None:
            return Verdict(code, now, view, None, any_project)
        if code is Code.VALID:
            self._usage.note(key.id, now)
            if key.awaits_first_use:
                self._first_uses.note(key)
        return Verdict(code, now, view, key, any_project)

    def last_resort(self, at_least: int, fully_consistent: bool) -> View | None:
        """Return an older view if the operator allows stale answers while the database is unavailable, else None.

        This is the explicit opt-in of an operator who prefers stale answers to no answers.
        """
        position = self._tail.last_resort(self._stale_if_error) if self._stale_if_error else None
        if position is None or fully_consistent or position < at_least:
            return None
        metrics.STALE_ANSWERS.inc()
        return View(position, self._tail.age)

    def _view(self, at_least: int, fully_consistent: bool) -> View:
        try:
            return View(self._tail.look(at_least, fully_consistent))
        except StoreUnavailable:
            view = self.last_resort(at_least, fully_consistent)
            if view is None:
                raise
            return view

    def _proven(
        self, unknown: Unknown, stored: tuple[Key, HashedSecret] | None, generation: int
    ) -> Key | Doubtful | None:
        if stored is None:
            return None
        key, hashed = stored
        if unknown.parsed is not None:
            if key.key_prefix != unknown.parsed.key_prefix:
                return None
            right = self._hasher.check_digest(unknown.text, hashed)
            if right is None:
                return Doubtful(unknown, key, hashed, generation)
            if not right:
                return None
        return self._remember(unknown, key, hashed, generation)

    def _remember(self, found: Unknown, key: Key, hashed: HashedSecret, generation: int) -> Key:
        self._cache.put(key, found.tag, generation)
        if self._hasher.needs_rehash(hashed):
            self._rehasher.later(key.id, found.text, keyformat.parse(found.text).secret, hashed)
        return key


def reached(question: Question, view: View) -> bool:
    """Return whether a view includes the revision that a question names."""
    return view.position >= question.at_least.revision


def unknown_change() -> InvalidFields:
    """Return the error for a question that names a change which is not in the log."""
    message = "names a change that this installation does not have; it was lost if a backup has been restored"
    return InvalidFields([Violation("consistency.at_least_as_fresh", message)])
