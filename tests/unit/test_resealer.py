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
from tumbler_server.secrets.secret import Hasher, Sealed
from tumbler_server.store.database import Store
from tumbler_server.verify.resealer import Resealer
from tumbler_server.verify.verifier import Question

NEW = Pepper(b"\x07" * 32)


def sealed_of(store: Store, key_id: str) -> Sealed:
    """Return the stored proofs of a key's secret."""
    (row,) = store.read(f"{record.SELECT} WHERE id = ?", (key_id,))
    return record.from_tuple(row)[1]


@pytest.fixture
def issued(domain: Domain) -> Issued:
    """Return a key that was hashed under the older pepper."""
    return domain.create()


@pytest.fixture
def resealer(store: Store) -> Iterator[Resealer]:
    """Yield a resealer with a higher cost and a newer pepper."""
    resealer = Resealer(store, Hasher(CHEAP + 1, [NEW]), FrozenClock())
    yield resealer
    resealer.close()


def reseal(resealer: Resealer, issued: Issued, sealed: Sealed) -> None:
    """Rehash a key, and wait for it."""
    resealer.later(issued.key.id, issued.text, keyformat.parse(issued.text).secret, sealed)
    resealer.drain()


def test_sealed_anew(store: Store, issued: Issued, resealer: Resealer) -> None:
    """A key is rehashed with the new cost and the new pepper, and both proofs accept it."""
    reseal(resealer, issued, sealed_of(store, issued.key.id))
    sealed = sealed_of(store, issued.key.id)
    now = Hasher(CHEAP + 1, [NEW])
    assert sealed.pepper_id == NEW.id
    assert not now.needs_rehash(sealed)
    assert now.check_digest(issued.text, sealed)
    assert now.check_bcrypt(keyformat.parse(issued.text).secret, sealed)


def test_nothing_else_changes(store: Store, issued: Issued, resealer: Resealer) -> None:
    """The key's other fields are unchanged; the log records the rehash, and the audit finds no problem."""
    before = store.read(f"{record.SELECT} WHERE id = ?", (issued.key.id,))[0]
    reseal(resealer, issued, sealed_of(store, issued.key.id))
    after = store.read(f"{record.SELECT} WHERE id = ?", (issued.key.id,))[0]
    assert record.from_tuple(before)[0] == issued.key
    revision = log.head(store).revision
    assert record.from_tuple(after)[0] == dataclasses.replace(issued.key, revision=revision)
    (event,) = log.events_after(store, issued.revision, 10)
    assert (event.type, event.key_id, event.revision) == (EventType.REHASHED, issued.key.id, revision)
    assert audit.run(store)


def test_first_come(store: Store, issued: Issued, resealer: Resealer) -> None:
    """If another process has rehashed the key meanwhile, its result is kept."""
    stale = sealed_of(store, issued.key.id)
    reseal(resealer, issued, stale)
    others = sealed_of(store, issued.key.id)
    reseal(resealer, issued, stale)
    assert sealed_of(store, issued.key.id) == others


class SlowHasher(Hasher):
    """A hasher that blocks until released, counts its calls, and may raise."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__(CHEAP, [NEW])
        self.may_go_on = threading.Event()
        self.begun = threading.Event()
        self.count = 0
        self._failure = failure

    def seal(self, text: str, secret: str) -> Sealed:
        self.count += 1
        self.begun.set()
        assert self.may_go_on.wait(10)
        if self._failure:
            raise self._failure
        return super().seal(text, secret)


def test_once_at_a_time(store: Store, issued: Issued) -> None:
    """A key that is queued is not queued again."""
    hasher = SlowHasher()
    resealer = Resealer(store, hasher, FrozenClock())
    sealed = sealed_of(store, issued.key.id)
    for _ in range(5):
        resealer.later(issued.key.id, issued.text, keyformat.parse(issued.text).secret, sealed)
    hasher.may_go_on.set()
    resealer.drain()
    assert hasher.count == 1
    resealer.close()


def test_bounded(store: Store) -> None:
    """At most 1,000 keys are queued; others are rehashed at their next use."""
    hasher = SlowHasher(ValueError("not today"))
    resealer = Resealer(store, hasher, FrozenClock())
    for number in range(1_100):
        resealer.later(f"{number:016}", "", "", Sealed("", None, ""))
    hasher.may_go_on.set()
    resealer.drain()
    assert hasher.count == 1_000
    resealer.close()


def test_failure_is_harmless(store: Store, issued: Issued) -> None:
    """If rehashing fails, the key is unchanged and tried again later; the error's type is logged once."""
    hasher = SlowHasher(ValueError(issued.text))
    hasher.may_go_on.set()
    resealer = Resealer(store, hasher, FrozenClock())
    before = sealed_of(store, issued.key.id)
    with structlog.testing.capture_logs() as logged:
        reseal(resealer, issued, before)
        reseal(resealer, issued, before)
    assert hasher.count == 2
    assert sealed_of(store, issued.key.id) == before
    assert [(entry["key_id"], entry["error"]) for entry in logged] == [(issued.key.id, "ValueError")]
    assert issued.text not in str(logged)
    resealer.close()


def test_close(store: Store, issued: Issued, domain: Domain) -> None:
    """Closing finishes the current key and drops the others."""
    other = domain.create()
    hasher = SlowHasher()
    resealer = Resealer(store, hasher, FrozenClock())
    for key in (issued, other):
        resealer.later(key.key.id, key.text, keyformat.parse(key.text).secret, sealed_of(store, key.key.id))
    assert hasher.begun.wait(10)
    closing = threading.Thread(target=resealer.close)
    closing.start()
    hasher.may_go_on.set()
    closing.join()
    assert sealed_of(store, issued.key.id).pepper_id == NEW.id


class TestOnUse:
    """How the verifier uses the resealer."""

    def test_by_use(self, store: Store, clock: FrozenClock, issued: Issued) -> None:
        """The first verification of a key under an older pepper rehashes it under the newest."""
        domain = Domain(store, clock, [NEW, PEPPER])
        assert domain.verifier.verify(Question(issued.text))
        domain.resealer.drain()
        assert sealed_of(store, issued.key.id).pepper_id == NEW.id
        domain.close()

    def test_a_lost_pepper(self, store: Store, clock: FrozenClock, issued: Issued) -> None:
        """Without the pepper that signed it, a key is proven by bcrypt once, and by its new digest afterwards."""
        domain = Domain(store, clock, [NEW])
        assert domain.verifier.verify(Question(issued.text))
        domain.resealer.drain()
        assert domain.hasher.check_digest(issued.text, sealed_of(store, issued.key.id))
        domain.close()

    def test_a_wrong_key_changes_nothing(self, store: Store, clock: FrozenClock, issued: Issued) -> None:
        """A wrong secret never replaces the right one."""
        before = sealed_of(store, issued.key.id)
        wrong = keyformat.build("tmb", issued.key.id, "0" * keyformat.SECRET_LENGTH)
        domain = Domain(store, clock, [NEW])
        assert not domain.verifier.verify(Question(wrong))
        domain.resealer.drain()
        assert sealed_of(store, issued.key.id) == before
        domain.close()
