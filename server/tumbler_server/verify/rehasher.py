"""Background rehashing of proven keys, after the bcrypt cost went up or another pepper signs."""

import threading
from concurrent.futures import ThreadPoolExecutor

from tumbler_server.clock import Clock
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys import evidence
from tumbler_server.secrets.secret import HashedSecret, Hasher
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow
from tumbler_server.trouble import Trouble

_MOST_WAITING = 1_000

ACTOR = Actor("", "rehash")
"""The actor of these events."""


class Rehasher:
    """A thread that rehashes keys as they are used. A dropped rehash is harmless: the next use queues it again."""

    def __init__(self, store: Store, hasher: Hasher, clock: Clock) -> None:
        self._store = store
        self._hasher = hasher
        self._clock = clock
        self._trouble = Trouble("keys cannot be rehashed; they keep working, and their next use retries")
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rehash")
        self._waiting: set[str] = set()
        self._lock = threading.Lock()

    def later(self, key_id: str, text: str, secret: str, hashed: HashedSecret) -> None:
        """Queue a proven key for rehashing, unless it is already queued or the queue is full."""
        with self._lock:
            if key_id in self._waiting or len(self._waiting) >= _MOST_WAITING:
                return
            self._waiting.add(key_id)
        try:
            self._executor.submit(self._rehash, key_id, text, secret, hashed)
        except RuntimeError:  # the server is stopping; the key was proven, and its call must not fail
            with self._lock:
                self._waiting.discard(key_id)

    def drain(self) -> None:
        """Wait until everything queued so far is done."""
        self._executor.submit(lambda: None).result()

    def close(self) -> None:
        """Finish the rehash in flight, and drop the queued ones."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _rehash(self, key_id: str, text: str, secret: str, hashed: HashedSecret) -> None:
        try:
            fresh = self._hasher.hash(text, secret)
            self._store.write_serialized(lambda transaction: self._replace(transaction, key_id, hashed, fresh))
        except Exception as failure:
            # The key keeps working with its old proofs. The exception's text is not logged: it could hold anything.
            self._trouble.met(key_id=key_id, error=type(failure).__name__)
        else:
            self._trouble.passed()
        finally:
            with self._lock:
                self._waiting.discard(key_id)

    def _replace(self, transaction: Transaction, key_id: str, before: HashedSecret, fresh: HashedSecret) -> None:
        """Store new proofs of a key and their event, unless the key was rehashed meanwhile."""
        for row, altered in evidence.stored(transaction.read, [key_id]).values():
            if row["secret_hash"] != before.secret_hash or altered:  # an event would confirm a change by hand
                return
            proofs = {"secret_hash": fresh.secret_hash, "digest": fresh.digest, "pepper_id": fresh.pepper_id}
            (previous,) = transaction.read("SELECT revision FROM api_key WHERE id = ?", (key_id,))[0]
            change = Change(
                EventType.REHASHED,
                key_id,
                row["project_id"],
                row["environment_id"],
                self._clock(),
                ACTOR,
                record=evidence.digest(row | proofs),
                previous=previous,
            )
            revision = log.append(transaction, change)
            transaction.run(ApiKeyRow.update(**proofs, revision=revision).where(ApiKeyRow.id == key_id))
