"""The pool that bcrypt runs in."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded
from tumbler_server.keys.prover import MOST_A_CALL, BcryptPool

PATIENCE = 10.0
"""Seconds after which a test that waits has failed."""

SEATS = 40
"""How many callers may wait in most tests."""


class Tag(bytes):
    """A tag that tells when the pool looks at it: from then on its caller is part of a flight."""

    def __init__(self, _: bytes) -> None:
        self.seen = threading.Event()

    def __hash__(self) -> int:
        self.seen.set()
        return super().__hash__()


def tag(number: int) -> Tag:
    """Return a tag; those of one number are the same one."""
    return Tag(number.to_bytes(32, "big"))


class Work:
    """A check that takes as long as the test wants, and counts how often it ran."""

    def __init__(self, outcome: bool = True) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.runs = 0
        self._outcome = outcome

    def __call__(self) -> bool:
        self.runs += 1
        self.begun.set()
        assert self.may_end.wait(PATIENCE)
        return self._outcome


def ask(pool: BcryptPool, asked: bytes, run: Callable[[], bool]) -> bool:
    """Have one check made."""
    (answer,) = pool.check([(asked, run)])
    return answer


class Callers:
    """Threads that ask the pool, each of which is part of a flight when ``ask`` returns."""

    def __init__(self, executor: ThreadPoolExecutor, pool: BcryptPool) -> None:
        self._executor = executor
        self._pool = pool

    def ask(self, number: int, work: Work) -> "Future[bool]":
        """Have a thread ask for a check, and return its answer to come."""
        asked = tag(number)
        answer = self._executor.submit(lambda: ask(self._pool, asked, work))
        assert asked.seen.wait(PATIENCE)
        return answer

    def submit(self, works: list[Work]) -> "Future[list[bool]]":
        """Have a thread ask for many checks, and return its answers to come."""
        checks = [(tag(number), work) for number, work in enumerate(works)]
        return self._executor.submit(lambda: list(self._pool.check(checks)))


@pytest.fixture
def pool() -> Iterator[BcryptPool]:
    """Give a pool of one worker."""
    pool = BcryptPool(1, SEATS)
    yield pool
    pool.close()


@pytest.fixture
def callers(pool: BcryptPool) -> Iterator[Callers]:
    """Give threads enough to fill the queue."""
    with ThreadPoolExecutor(SEATS + 16) as executor:
        yield Callers(executor, pool)


class TestCheck:
    """One check."""

    @pytest.mark.parametrize("outcome", [True, False])
    def test_outcome(self, pool: BcryptPool, outcome: bool) -> None:
        """The answer is the check's own."""
        assert ask(pool, tag(1), lambda: outcome) is outcome

    def test_not_remembered(self, pool: BcryptPool) -> None:
        """A check that is over is forgotten: the same tag is checked anew, and may come out otherwise."""
        assert ask(pool, tag(1), lambda: False) is False
        ask(pool, tag(2), lambda: True)  # the one worker begins it after it has put the first away
        assert ask(pool, tag(1), lambda: True) is True

    def test_failure(self, pool: BcryptPool) -> None:
        """A check that fails fails for its caller, and does not stay in the way of the next."""

        def fail() -> bool:
            raise ValueError("broken hash")

        with pytest.raises(ValueError, match="broken hash"):
            ask(pool, tag(1), fail)
        ask(pool, tag(2), lambda: True)
        assert ask(pool, tag(1), lambda: True)


class TestSingleFlight:
    """Many who ask the same."""

    @pytest.mark.parametrize("outcome", [True, False])
    def test_one_run(self, callers: Callers, outcome: bool) -> None:
        """Callers with the same tag at the same time share one run and its answer."""
        work = Work(outcome)
        answers = [callers.ask(1, work) for _ in range(32)]
        work.may_end.set()
        assert [answer.result(PATIENCE) for answer in answers] == [outcome] * 32
        assert work.runs == 1

    def test_different_tags(self, callers: Callers) -> None:
        """Different tags are different checks, each with its own answer."""
        works = [Work(outcome=bool(number % 2)) for number in range(6)]
        answers = [callers.ask(number, work) for number, work in enumerate(works)]
        for work in works:
            work.may_end.set()
        assert [answer.result(PATIENCE) for answer in answers] == [False, True] * 3
        assert [work.runs for work in works] == [1] * 6

    def test_side_by_side(self) -> None:
        """As many checks run at the same time as there are workers."""
        pool = BcryptPool(2, SEATS)
        works = [Work(), Work()]
        with ThreadPoolExecutor(2) as executor:
            for number, work in enumerate(works):
                executor.submit(ask, pool, tag(number), work)
            assert all(work.begun.wait(PATIENCE) for work in works)
            for work in works:
                work.may_end.set()
        pool.close()


class TestQueue:
    """Too many who ask."""

    def test_bounded(self, pool: BcryptPool, callers: Callers) -> None:
        """One caller more than may wait is refused at once, and told to come back in a second."""
        work = Work()
        answers = [callers.ask(number, work) for number in range(SEATS)]
        for number in (0, SEATS):  # whether others ask the same or not: each holds a thread
            with pytest.raises(Overloaded) as caught:
                ask(pool, tag(number), work)
            assert caught.value.retry_after == SECOND
        work.may_end.set()
        assert all(answer.result(PATIENCE) for answer in answers)
        assert work.runs == SEATS

    def test_room_again(self, pool: BcryptPool, callers: Callers) -> None:
        """When those who waited have their answers, there is room again."""
        work = Work()
        work.may_end.set()
        for _ in range(2):
            for answer in [callers.ask(number, work) for number in range(SEATS)]:
                assert answer.result(PATIENCE)
        assert ask(pool, tag(SEATS), work)


class TestBatch:
    """One caller with many keys."""

    def test_in_order(self, pool: BcryptPool) -> None:
        """The answers come in the order of the checks."""
        outcomes = [bool(number % 3) for number in range(20)]
        checks = [(tag(number), lambda outcome=outcome: outcome) for number, outcome in enumerate(outcomes)]
        assert list(pool.check(checks)) == outcomes

    def test_none(self, pool: BcryptPool) -> None:
        """Without keys nothing is asked, and nobody waits."""
        assert list(pool.check([])) == []

    def test_its_turn(self, callers: Callers) -> None:
        """A batch takes no more of the pool than there are threads: another caller's key comes in between."""
        first, others, single = Work(), Work(), Work()
        others.may_end.set()
        batch = callers.submit([first, *[others] * 10])
        assert first.begun.wait(PATIENCE)
        answer = callers.ask(1_000, single)
        first.may_end.set()
        assert single.begun.wait(PATIENCE)
        assert others.runs == 0
        single.may_end.set()
        assert answer.result(PATIENCE)
        assert batch.result(PATIENCE) == [True] * 11

    def test_bounded(self, pool: BcryptPool) -> None:
        """After 64 keys a call has had its share: what was found out is told, and the rest refused."""
        answers = pool.check([(tag(number), lambda: True) for number in range(MOST_A_CALL + 1)])
        assert [next(answers) for _ in range(MOST_A_CALL)] == [True] * MOST_A_CALL
        with pytest.raises(Overloaded):
            next(answers)


class TestClose:
    """The end."""

    def test_under_way_and_waiting(self, pool: BcryptPool, callers: Callers) -> None:
        """What runs is waited for and answered; what waits is cancelled."""
        running, waiting = Work(), Work()
        answered = callers.ask(1, running)
        assert running.begun.wait(PATIENCE)
        cancelled = callers.ask(2, waiting)
        closing = threading.Thread(target=pool.close)
        closing.start()
        with pytest.raises(Overloaded):
            cancelled.result(PATIENCE)
        assert closing.is_alive()
        running.may_end.set()
        closing.join(PATIENCE)
        assert answered.result(PATIENCE)
        assert waiting.runs == 0

    def test_afterwards(self, pool: BcryptPool) -> None:
        """A closed pool takes nothing more."""
        pool.close()
        with pytest.raises(Overloaded):
            ask(pool, tag(1), lambda: True)
