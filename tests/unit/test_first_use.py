"""First uses: how many are noted, and in which order they are written; `rpc/test_first_use.py` has their effect."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from tests.domain import Domain
from tests.e2e.service import eventually
from tests.harness import FrozenClock
from tumbler_server.errors import StoreUnavailable
from tumbler_server.events import log
from tumbler_server.events.log import EventType
from tumbler_server.keys.ledger import Ledger, Snapshot
from tumbler_server.keys.record import Key, OldKeyEnds
from tumbler_server.verify.first_use import FirstUses
from tumbler_server.verify.verifier import Question

PATIENCE = 30.0


def key(project_id: str, number: int) -> Key:
    """Return a key that awaits its first use."""
    return Key(f"{project_id}{number}", project_id, replaces_key_id="gone", awaits_first_use=True)


class Book:
    """A fake ledger that records the keys written, in order. Writing a ``broken`` key fails."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.written: list[str] = []
        self.broken: set[str] = set()
        self.clock = FrozenClock()
        self.read = None

    def write(self, work: Callable[[Any], Snapshot]) -> Snapshot:
        return work(self)

    def find(self, _: object, key_id: str) -> Key | None:
        if key_id in self.broken:
            raise StoreUnavailable
        return self.keys.get(key_id)

    def intact(self, _: object, __: str) -> bool:
        return True

    def save(self, _: object, actor: object, before: Key, after: Key, *rest: object) -> Snapshot:
        del actor, rest
        self.keys[before.id] = after
        self.written.append(before.id)
        return Snapshot(after, 1, 0)

    def note(self, uses: FirstUses, *keys: Key) -> None:
        """Add keys to the book and note their use."""
        for each in keys:
            self.keys[each.id] = each
            uses.note(each)


@pytest.fixture
def book() -> Book:
    """Return an empty ledger."""
    return Book()


def uses_of(book: Book, most: int = 100) -> FirstUses:
    """Return a FirstUses on a fake ledger. It writes when a test flushes it."""
    return FirstUses(cast("Ledger", book), most)


class TestBounds:
    """How many first uses are kept."""

    def test_noted_once(self, book: Book) -> None:
        """However often a key is used before its first use is written, it is noted and written once."""
        uses = uses_of(book)
        for _ in range(5):
            book.note(uses, key("acme", 1))
        assert len(uses) == 1
        assert uses.flush()
        assert (book.written, len(uses)) == (["acme1"], 0)

    def test_room_for_others(self, book: Book) -> None:
        """A project never takes more places than it leaves free, so other projects' uses are noted."""
        uses = uses_of(book, most=16)
        for project_id, share in (("a", 8), ("b", 4), ("c", 2), ("d", 1), ("e", 1), ("f", 0)):
            before = len(uses)
            book.note(uses, *(key(project_id, number) for number in range(50)))
            assert len(uses) - before == share
        assert len(uses) == 16

    def test_dropped_is_noted_at_the_next_use(self, book: Book) -> None:
        """A use that found no place is noted again at a later use."""
        uses = uses_of(book, most=2)
        first, second = key("acme", 1), key("acme", 2)
        book.note(uses, first, second)
        assert uses.flush()
        assert book.written == ["acme1"]
        book.note(uses, second)
        assert uses.flush()
        assert book.written == ["acme1", "acme2"]

    def test_many_threads(self, book: Book) -> None:
        """With many threads that note during a flush, each use is written once."""
        uses = uses_of(book, most=10_000)
        keys = [key(f"p{number % 7}-", number) for number in range(700)]
        with ThreadPoolExecutor(8) as threads:
            flushing = [threads.submit(uses.flush) for _ in range(2)]
            list(threads.map(lambda each: book.note(uses, each), keys))
            assert all(each.result(PATIENCE) for each in flushing)
        assert uses.flush()
        assert sorted(book.written) == sorted(each.id for each in keys)
        assert len(uses) == 0


class TestTurns:
    """The order of writing."""

    def test_projects_take_turns(self, book: Book) -> None:
        """Projects take turns: one with many uses delays another by at most one of them."""
        uses = uses_of(book)
        book.note(uses, *(key("a", number) for number in range(4)), *(key("b", number) for number in range(2)))
        assert uses.flush()
        assert book.written == ["a0", "b0", "a1", "b1", "a2", "a3"]

    def test_one_that_cannot_be_written(self, book: Book) -> None:
        """A key that cannot be written is kept, and delays its project and others only by a pause."""
        uses = uses_of(book)
        book.broken = {"a0"}
        book.note(uses, key("a", 0), key("a", 1), key("b", 0))
        assert not uses.flush()
        assert not uses.flush()
        assert book.written == ["b0", "a1"]
        book.broken = set()
        assert uses.flush()
        assert book.written == ["b0", "a1", "a0"]

    def test_lost_key(self, book: Book) -> None:
        """A key that no longer exists, as after a restore, is dropped."""
        uses = uses_of(book)
        uses.note(key("acme", 1))
        assert uses.flush()
        assert (book.written, len(uses)) == ([], 0)


class TestThread:
    """Writing in the background."""

    def test_at_once(self, domain: Domain) -> None:
        """Once started, it writes each noted use without a flush."""
        domain.first_uses.start()
        for number in (1, 2):
            old = domain.create()
            new = domain.rotate(old.key.id, old_key_ends=OldKeyEnds.ON_FIRST_USE)
            assert domain.verifier.verify(Question(new.text))
            eventually(lambda old=old: not domain.verifier.verify(Question(old.text)), PATIENCE)
            eventually(lambda: len(domain.first_uses) == 0, PATIENCE)
            events = log.events_after(domain.store, 0, 100)
            assert sum(event.type == EventType.FIRST_USED for event in events) == number
        domain.first_uses.close()

    def test_close_writes_what_is_noted(self, book: Book) -> None:
        """Closing writes all noted uses first."""
        uses = uses_of(book)
        began, go_on = threading.Event(), threading.Event()
        write = book.write

        def slowly(work: Callable[[Any], Snapshot]) -> Snapshot:
            began.set()
            assert go_on.wait(PATIENCE)
            return write(work)

        book.write = slowly  # type: ignore[method-assign]
        uses.start()
        book.note(uses, key("a", 1))
        assert began.wait(PATIENCE)
        book.note(uses, key("a", 2), key("b", 1))
        closing = threading.Thread(target=uses.close)
        closing.start()
        go_on.set()
        closing.join(PATIENCE)
        assert not closing.is_alive()
        assert sorted(book.written) == ["a1", "a2", "b1"]

    def test_close_without_a_database(self, book: Book) -> None:
        """If the uses cannot be written, closing still ends."""
        uses = uses_of(book)
        book.broken = {"a1"}
        uses.start()
        book.note(uses, key("a", 1))
        uses.close()
        assert len(uses) == 1
