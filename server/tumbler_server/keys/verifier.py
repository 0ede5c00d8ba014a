"""The hot path: from a presented key to a verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from tumbler import keyformat
from tumbler.decide import Code, Demand, decide
from tumbler_server import metrics
from tumbler_server.clock import Clock
from tumbler_server.errors import InvalidFields, StoreUnavailable, Violation
from tumbler_server.events.tail import Tail
from tumbler_server.keys import evidence, record
from tumbler_server.keys.cache import ProofCache
from tumbler_server.keys.first_use import FirstUses
from tumbler_server.keys.record import Key, Sealed
from tumbler_server.keys.resealer import Resealer
from tumbler_server.keys.secret import Hasher, same
from tumbler_server.keys.usage import Usage
from tumbler_server.store.database import Store
from tumbler_server.trouble import Trouble


class Question(NamedTuple):
    """A key as it was presented, what for, and how fresh the answer must be.

    ``at_least`` is the oldest revision that the answer may reflect; with ``exactly`` it reflects every change that
    returned before the call, wherever it was made.
    """

    text: str
    demand: Demand = Demand()
    at_least: int = 0
    exactly: bool = False

    def __repr__(self) -> str:
        return f"Question(demand={self.demand}, at_least={self.at_least}, exactly={self.exactly})"  # without the key


class View(NamedTuple):
    """What an answer rests on: a position in the log, and how many microseconds ago it was the newest, if too many."""

    position: int
    age: int = 0


class Verdict(NamedTuple):
    """The outcome of a verification; true only when allowed. ``key`` is there only where its secret was proven.

    ``time`` is the instant at which it was decided, by what was known in ``view``. ``any_project``: a key of any
    project would have done.
    """

    code: Code
    time: int
    view: View
    key: Key | None = None
    any_project: bool = False

    def __bool__(self) -> bool:
        return self.code is Code.VALID


class Unknown(NamedTuple):
    """A text of a key's form whose record has to be read. ``parsed`` is None where it was proven before."""

    text: str
    id: str
    tag: bytes
    parsed: keyformat.ParsedKey | None

    def __repr__(self) -> str:
        return f"Unknown(id={self.id!r})"  # without the key


class Doubtful(NamedTuple):
    """A presented key that no digest can prove: only bcrypt can tell whether it is the right one."""

    asked: Unknown
    key: Key
    sealed: Sealed
    generation: int


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
        resealer: Resealer,
        usage: Usage,
        first_uses: FirstUses,
        clock: Clock,
        stale_if_error: int = 0,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._tail = tail
        self._cache = cache
        self._resealer = resealer
        self._usage = usage
        self._first_uses = first_uses
        self._clock = clock
        self._stale_if_error = stale_if_error
        self._altered = Trouble("a key is refused: its row is not as its last event says; run `audit verify`")

    def verify(self, question: Question, view: View | None = None) -> Verdict:
        """Return the verdict on a presented key, by a view that was taken in the same call, or by one of its own.

        The stages one after the other, on one thread: ``rpc.hotpath`` runs them on a loop. Raises ``InvalidFields``
        where the installation has not come as far as it must, and ``StoreUnavailable`` where the database does not
        answer; nothing is decided then.
        """
        _, _, at_least, exactly = question
        if view is None or exactly or view.position < at_least:
            view = self._view(at_least, exactly)
        reached(question, view)
        key = self.recall(question.text)
        if isinstance(key, Unknown):
            (found,) = self.read([key])
            key = self.prove(found) if isinstance(found, Doubtful) else found
        return self.judge(key, question.demand, view, self._clock())

    def now(self) -> int:
        """Return the instant by which verdicts are given."""
        return self._clock()

    def used(self, key: Key) -> None:
        """Note that a key was used to call this service."""
        if key.id:
            self._usage.note(key.id, self._clock())
            if key.awaits_first_use:
                self._first_uses.note(key)

    def recall(self, text: str) -> Key | Code | Unknown | None:
        """Return what is known of a presented key, without reading anything. To be asked after the view was taken.

        That is its record, or None where it is none; MALFORMED, which needs neither query nor hash; or what to ask.
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
        # An id has one secret, and if it is known, this is not it.
        return Unknown(text, key_id, tag, parsed) if entry is None else None

    def remembers(self, key: Key) -> bool:
        """Say whether a record that was recalled before is still the one that is known of its key."""
        entry = self._cache.get(key.id)
        return entry is not None and entry.key is key

    def read(self, asked: Sequence[Unknown]) -> list[Key | Doubtful | None]:
        """Read the records of keys that the cache does not know, by one query; None for each that is no key.

        A key whose row is not as its last event told is none: remembered, it would outlive the row.
        Raises ``StoreUnavailable``.
        """
        generation = self._cache.generation
        metrics.RECORD_READS.inc(len(asked))
        stored = {}
        for row in evidence.with_records(self._store.read, [unknown.id for unknown in asked]):
            key, sealed = record.from_tuple(row[evidence.OF_RECORD])
            if altered := evidence.altered_in(row):
                metrics.ALTERED_RECORDS.inc()
                self._altered.met(key_id=key.id, fields=",".join(altered))
            else:
                self._altered.passed()
                stored[key.id] = key, sealed
        return [self._proven(unknown, stored.get(unknown.id), generation) for unknown in asked]

    def prove(self, doubtful: Doubtful) -> Key | None:
        """Return the record of a presented key if bcrypt says that it is the right one, else None."""
        metrics.BCRYPT_RUNS.inc()
        asked, key, sealed, generation = doubtful
        secret = keyformat.parse(asked.text).secret
        if not self._hasher.check_bcrypt(secret, sealed):
            return None
        return self._remember(asked, key, sealed, generation)

    def judge(self, key: Key | Code | None, demand: Demand, view: View, now: int) -> Verdict:
        """Give the verdict on what is known of a presented key, and note that it was used."""
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

    def last_resort(self, at_least: int, exactly: bool) -> View | None:
        """Return an older view where the database does not answer and the operator allowed that; None otherwise.

        The explicit opt-in of an operator who would rather be late than down.
        """
        position = self._tail.last_resort(self._stale_if_error) if self._stale_if_error else None
        if position is None or exactly or position < at_least:
            return None
        metrics.STALE_ANSWERS.inc()
        return View(position, self._tail.age)

    def _view(self, at_least: int, exactly: bool) -> View:
        try:
            return View(self._tail.look(at_least, exactly))
        except StoreUnavailable:
            view = self.last_resort(at_least, exactly)
            if view is None:
                raise
            return view

    def _proven(self, unknown: Unknown, stored: tuple[Key, Sealed] | None, generation: int) -> Key | Doubtful | None:
        if stored is None:
            return None
        key, sealed = stored
        if unknown.parsed is not None:
            if key.key_prefix != unknown.parsed.key_prefix:
                return None
            right = self._hasher.check_digest(unknown.text, sealed)
            if right is None:
                return Doubtful(unknown, key, sealed, generation)
            if not right:
                return None
        return self._remember(unknown, key, sealed, generation)

    def _remember(self, found: Unknown, key: Key, sealed: Sealed, generation: int) -> Key:
        self._cache.put(key, found.tag, generation)
        if self._hasher.needs_rehash(sealed):
            self._resealer.later(key.id, found.text, keyformat.parse(found.text).secret, sealed)
        return key


def reached(question: Question, view: View) -> None:
    """Raise ``InvalidFields`` where a question names a revision that the installation has not come to."""
    if view.position < question.at_least:
        raise InvalidFields([Violation("consistency.at_least_as_fresh", "names a revision that does not exist")])
