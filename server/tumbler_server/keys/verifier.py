"""The hot path: from a presented key to a verdict."""

from dataclasses import dataclass

from tumbler import keyformat
from tumbler_server.clock import Clock
from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.events.tail import Tail
from tumbler_server.keys import record
from tumbler_server.keys.cache import ProofCache
from tumbler_server.keys.decide import Code, Demand, decide
from tumbler_server.keys.prover import BcryptPool
from tumbler_server.keys.record import Key
from tumbler_server.keys.resealer import Resealer
from tumbler_server.keys.secret import Hasher, same
from tumbler_server.store.database import Store


@dataclass(frozen=True)
class Verdict:
    """The outcome of a verification; true only when allowed. ``key`` is there only where its secret was proven."""

    code: Code
    time: int
    revision: int
    key: Key | None = None

    def __bool__(self) -> bool:
        return self.code is Code.VALID


class Verifier:
    """Proves presented keys and decides on them, always by the newest record."""

    def __init__(
        self,
        store: Store,
        hasher: Hasher,
        tail: Tail,
        cache: ProofCache,
        pool: BcryptPool,
        resealer: Resealer,
        clock: Clock,
    ) -> None:
        self._store = store
        self._hasher = hasher
        self._tail = tail
        self._cache = cache
        self._pool = pool
        self._resealer = resealer
        self._clock = clock

    def verify(self, text: str, demand: Demand, at_least: int = 0) -> Verdict:
        """Return the verdict on a presented key.

        ``at_least`` is the oldest revision that the answer may reflect. Raises ``InvalidFields`` where the installation
        has not come so far, ``Overloaded`` where too many secrets wait for bcrypt, and ``StoreUnavailable`` where the
        database does not answer; nothing is decided then.
        """
        try:
            parsed = keyformat.parse(text)
        except keyformat.MalformedKey:
            return Verdict(Code.MALFORMED, self._clock(), self._tail.position)
        position = self._tail.catch_up()
        if position < at_least:
            raise InvalidFields([Violation("consistency.at_least_as_fresh", "names a revision that does not exist")])
        key = self._proven(text, parsed, position)
        now = self._clock()
        code = decide(key, demand, now)
        return Verdict(code, now, position, None if code is Code.NOT_FOUND else key)

    def _proven(self, text: str, parsed: keyformat.ParsedKey, position: int) -> Key | None:
        """Return the record of the key that ``text`` is, or None where it is none."""
        tag = self._cache.tag(text)
        known = self._cache.get(parsed.id)
        if known is not None:
            if not same(known.tag, tag):
                return None  # an id has one secret, and this is not it
            if known.key is not None:
                return known.key
        rows = self._store.read(f"{record.SELECT} WHERE id = ?", (parsed.id,))
        if not rows:
            return None
        key, sealed = record.from_tuple(rows[0])
        if known is None:
            if key.key_prefix != parsed.key_prefix:
                return None
            proven = self._hasher.check_digest(text, sealed)
            if proven is None:
                proven = self._pool.check(tag, lambda: self._hasher.check_bcrypt(parsed.secret, sealed))
            if not proven:
                return None
        self._cache.put(key, tag, position)
        if self._hasher.needs_rehash(sealed):
            self._resealer.later(key.id, text, parsed.secret, sealed)
        return key
