"""Rehashing keys as they are used."""

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import structlog

from tests.domain import PEPPER, Domain
from tests.harness import CHEAP, FrozenClock
from tumbler import keyformat
from tumbler_server.audit import audit
from tumbler_server.events import log
from tumbler_server.events.log import EventType
from tumbler_server.keys import record
from tumbler_server.keys.ledger import Issued
from tumbler_server.secrets.pepper import Pepper
from tumbler_server.secrets.secret import HashedSecret, Hasher
from tumbler_server.store.database import Store
from tumbler_server.verify.rehasher import Rehasher
from tumbler_server.verify.verifier import Question

NEW = Pepper(b"\x07" * 32)


def hashed_of(store: Store, key_id: str) -> HashedSecret:
    """Return the stored proofs of a key's secret."""
    (row,) = store.read(f"{record.SELECT} WHERE id = ?", (key_id,))
    return record.from_tuple(row)[1]


@pytest.fixture
def issued(domain: Domain) -> Issued:
    """Return a key that was hashed under the older pepper."""
    return domain.create()


@pytest.fixture
def rehasher(store: Store) -> Iterator[Rehasher]:
    """Yield a rehasher with a higher cost and a newer pepper."""
    rehasher = Rehasher(store, Hasher(CHEAP + 1, [NEW]), FrozenClock())
    yield rehasher
    rehasher.close()


def rehash(rehasher: Rehasher, issued: Issued, hashed: HashedSecret) -> None:
    """Rehash a key, and wait for it."""
    rehasher.later(issued.key.id, issued.text, keyformat.parse(issued.text).secret, hashed)
    rehasher.drain()


def test_the_thread_has_ended(issued: Issued, store: Store, rehasher: Rehasher) -> None:
    """A key that is proven while the server stops is not rehashed, and its call does not fail."""
    before = hashed_of(store, issued.key.id)
    rehasher.close()
    rehasher.later(issued.key.id, issued.text, keyformat.parse(issued.text).secret, before)
    assert hashed_of(store, issued.key.id) == before


def test_hashed_anew(store: Store, issued: Issued, rehasher: Rehasher) -> None:
    """A key is rehashed with the new cost and the new pepper, and both proofs accept it."""
    rehash(rehasher, issued, hashed_of(store, issued.key.id))
    hashed = hashed_of(store, issued.key.id)
    now = Hasher(CHEAP + 1, [NEW])
    assert hashed.pepper_id == NEW.id
    assert not now.needs_rehash(hashed)
    assert now.check_digest(issued.text, hashed)
    assert now.check_bcrypt(keyformat.parse(issued.text).secret, hashed)


def test_nothing_else_changes(store: Store, issued: Issued, rehasher: Rehasher) -> None:
    """The key's other fields are unchanged; the log records the rehash, and the audit finds no problem."""
    before = store.read(f"{record.SELECT} WHERE id = ?", (issued.key.id,))[0]
    rehash(rehasher, issued, hashed_of(store, issued.key.id))
    after = store.read(f"{record.SELECT} WHERE id = ?", (issued.key.id,))[0]
    assert record.from_tuple(before)[0] == issued.key
    revision = log.head(store).revision
    assert record.from_tuple(after)[0] == dataclasses.replace(issued.key, revision=revision)
    (event,) = log.events_after(store, issued.revision, 10)
    assert (event.type, event.key_id, event.revision) == (EventType.REHASHED, issued.key.id, revision)
    assert audit.run(store)


def test_first_come(store: Store, issued: Issued, rehasher: Rehasher) -> None:
    """If another process has rehashed the key meanwhile, its result is kept."""
    stale = hashed_of(store, issued.key.id)
    rehash(rehasher, issued, stale)
    others = hashed_of(store, issued.key.id)
    rehash(rehasher, issued, stale)
    assert hashed_of(store, issued.key.id) == others


class SlowHasher(Hasher):
    """A hasher that blocks until released, counts its calls, and may raise."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__(CHEAP, [NEW])
        self.may_go_on = threading.Event()
        self.begun = threading.Event()
        self.count = 0
        self._failure = failure

    def hash(self, text: str, secret: str) -> HashedSecret:
        self.count += 1
        self.begun.set()
        assert self.may_go_on.wait(10)
        if self._failure:
            raise self._failure
        return super().hash(text, secret)


def test_once_at_a_time(store: Store, issued: Issued) -> None:
    """A key that is queued is not queued again."""
    hasher = SlowHasher()
    rehasher = Rehasher(store, hasher, FrozenClock())
    hashed = hashed_of(store, issued.key.id)
    for _ in range(5):
        rehasher.later(issued.key.id, issued.text, keyformat.parse(issued.text).secret, hashed)
    hasher.may_go_on.set()
    rehasher.drain()
    assert hasher.count == 1
    rehasher.close()


def test_bounded(store: Store) -> None:
    """At most 1,000 keys are queued; others are rehashed at their next use."""
    hasher = SlowHasher(ValueError("not today"))
    rehasher = Rehasher(store, hasher, FrozenClock())
    for number in range(1_100):
        rehasher.later(f"{number:016}", "", "", HashedSecret("", None, ""))
    hasher.may_go_on.set()
    rehasher.drain()
    assert hasher.count == 1_000
    rehasher.close()


def test_failure_is_harmless(store: Store, issued: Issued) -> None:
    """If rehashing fails, the key is unchanged and tried again later; the error's type is logged once."""
    hasher = SlowHasher(ValueError(issued.text))
    hasher.may_go_on.set()
    rehasher = Rehasher(store, hasher, FrozenClock())
    before = hashed_of(store, issued.key.id)
    with structlog.testing.capture_logs() as logged:
        rehash(rehasher, issued, before)
        rehash(rehasher, issued, before)
    assert hasher.count == 2
    assert hashed_of(store, issued.key.id) == before
    assert [(entry["key_id"], entry["error"]) for entry in logged] == [(issued.key.id, "ValueError")]
    assert issued.text not in str(logged)
    rehasher.close()


def test_close(store: Store, issued: Issued, domain: Domain) -> None:
    """Closing finishes the current key and drops the others."""
    other = domain.create()
    hasher = SlowHasher()
    rehasher = Rehasher(store, hasher, FrozenClock())
    for key in (issued, other):
        rehasher.later(key.key.id, key.text, keyformat.parse(key.text).secret, hashed_of(store, key.key.id))
    assert hasher.begun.wait(10)
    closing = threading.Thread(target=rehasher.close)
    closing.start()
    hasher.may_go_on.set()
    closing.join()
    assert hashed_of(store, issued.key.id).pepper_id == NEW.id


class TestOnUse:
    """How the verifier uses the rehasher."""

    def test_by_use(self, store: Store, clock: FrozenClock, issued: Issued) -> None:
        """The first verification of a key under an older pepper rehashes it under the newest."""
        domain = Domain(store, clock, [NEW, PEPPER])
        assert domain.verifier.verify(Question(issued.text))
        domain.rehasher.drain()
        assert hashed_of(store, issued.key.id).pepper_id == NEW.id
        domain.close()

    def test_a_lost_pepper(self, store: Store, clock: FrozenClock, issued: Issued) -> None:
        """Without the pepper that signed it, a key is proven by bcrypt once, and by its new digest afterwards."""
        domain = Domain(store, clock, [NEW])
        assert domain.verifier.verify(Question(issued.text))
        domain.rehasher.drain()
        assert domain.hasher.check_digest(issued.text, hashed_of(store, issued.key.id))
        domain.close()

    def test_a_wrong_key_changes_nothing(self, store: Store, clock: FrozenClock, issued: Issued) -> None:
        """A wrong secret never replaces the right one."""
        before = hashed_of(store, issued.key.id)
        wrong = keyformat.build("tmb", issued.key.id, "0" * keyformat.SECRET_LENGTH)
        domain = Domain(store, clock, [NEW])
        assert not domain.verifier.verify(Question(wrong))
        domain.rehasher.drain()
        assert hashed_of(store, issued.key.id) == before
        domain.close()
