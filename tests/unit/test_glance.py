"""The position that an answer may rely on, as seen by an event loop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from tests.domain import Domain
from tests.unit.test_lanes import PATIENCE, soon, turns
from tumbler_server.errors import StoreUnavailable
from tumbler_server.freshness.glance import Glance
from tumbler_server.freshness.tail import Tail
from tumbler_server.store.database import Store, open_store


class Log:
    """A log that others commit to, and a position in it. ``commits_show``: as on SQLite; else as on PostgreSQL.

    Each look returns the log's head at its start, and ends when the test releases it.
    """

    def __init__(self, commits_show: bool, held: bool = False) -> None:
        self.commits_show = commits_show
        self.position = 0
        self.head = 0
        self.confirmed = False
        """Whether the position was confirmed within the bound."""
        self.away = False
        self.looks = 0
        self.versions = 0
        self.go = threading.Semaphore(0 if held else 1_000_000)

    def commit(self) -> int:
        """Commit something elsewhere, and return its revision."""
        self.head += 1
        return self.head

    def version(self) -> object:
        self.versions += 1
        if self.away:
            raise StoreUnavailable
        return self.head

    def known(self, at_least: int, fully_consistent: bool) -> int | None:
        return self.position if self.confirmed and not fully_consistent and self.position >= at_least else None

    def confirm(self) -> int:
        head, away = self.head, self.away
        self.looks += 1
        assert self.go.acquire(timeout=PATIENCE)
        if away:
            raise StoreUnavailable
        self.position = max(self.position, head)
        return self.position


def glancing(test: Callable[[Glance], Awaitable[None]], log: Log | Tail) -> None:
    """Run a test on a loop, with a glance at a log."""

    async def run() -> None:
        complaints = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        threads = ThreadPoolExecutor(2)
        try:
            await asyncio.wait_for(test(Glance(cast("Tail", log), threads)), PATIENCE)
        finally:
            if isinstance(log, Log):
                log.go.release(1_000)
            threads.shutdown()
        await turns()
        assert not complaints

    asyncio.run(run())


class TestCommitsShow:
    """SQLite, where each thread sees at once that something was committed."""

    def test_now(self) -> None:
        """A position is good until the next commit; then the log must be read."""
        log = Log(commits_show=True)

        async def test(glance: Glance) -> None:
            assert glance.now() is None  # nothing has been read yet
            assert await glance.fresh() == 0
            for _ in range(3):
                assert glance.now() == 0
                await turns()
            revision = log.commit()
            assert glance.now() is None
            assert await glance.fresh() == revision
            assert glance.now() == revision

        glancing(test, log)

    def test_one_look_serves_a_turn_of_the_loop(self) -> None:
        """One look serves every callback already in the loop's queue; one queued later needs its own."""
        log = Log(commits_show=True)
        seen: list[int | None] = []

        async def test(glance: Glance) -> None:
            await glance.fresh()
            loop = asyncio.get_running_loop()
            before = log.versions

            def first() -> None:
                seen.append(glance.now())
                log.commit()  # after the look, and after the queued callbacks had begun
                loop.call_soon(lambda: seen.append(glance.now()))  # a call that begins now

            for work in (first, *[lambda: seen.append(glance.now())] * 3):
                loop.call_soon(work)
            await turns()
            assert seen == [0, 0, 0, 0, None]
            assert log.versions == before + 2

        glancing(test, log)

    def test_a_refusal_is_not_shared(self) -> None:
        """A negative result is not shared: the position may be good for the next call."""
        log = Log(commits_show=True)

        async def test(glance: Glance) -> None:
            assert glance.now() is None
            assert glance.now() is None
            assert log.versions == 2

        glancing(test, log)

    def test_a_look_that_began_at_the_same_version_will_do(self) -> None:
        """A look in progress serves later calls while nothing has been committed since it began."""
        log = Log(commits_show=True, held=True)

        async def test(glance: Glance) -> None:
            asked = [asyncio.ensure_future(glance.fresh())]
            await soon(lambda: log.looks == 1)
            asked += [asyncio.ensure_future(glance.fresh()) for _ in range(3)]
            await turns()
            assert log.looks == 1
            revision = log.commit()
            later = [asyncio.ensure_future(glance.fresh()) for _ in range(3)]
            await soon(lambda: log.looks == 2)
            log.go.release(2)
            assert await asyncio.gather(*later) == [revision] * 3
            await asyncio.gather(*asked)
            assert log.looks == 2

        glancing(test, log)

    def test_a_commit_while_looking(self) -> None:
        """A commit during a look does not count as seen when the look ends."""
        log = Log(commits_show=True, held=True)

        async def test(glance: Glance) -> None:
            asked = asyncio.ensure_future(glance.fresh())
            await soon(lambda: log.looks == 1)
            log.commit()
            log.go.release()
            assert await asked == 0
            assert glance.now() is None

        glancing(test, log)

    def test_away(self) -> None:
        """If even the version cannot be read, calls raise StoreUnavailable, and succeed once it can be read."""
        log = Log(commits_show=True)

        async def test(glance: Glance) -> None:
            await glance.fresh()
            log.away = True
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    glance.now()
                with pytest.raises(StoreUnavailable):
                    await glance.fresh()
            log.away = False
            assert await glance.fresh() == 0

        glancing(test, log)


class TestCommitsDoNotShow:
    """PostgreSQL, where only a look shows what others have committed."""

    def test_now(self) -> None:
        """A confirmed position is returned without a look."""
        log = Log(commits_show=False)
        log.confirmed, log.position = True, 5

        async def test(glance: Glance) -> None:
            assert glance.now() == 5
            assert glance.now(at_least=5) == 5
            assert glance.now(at_least=6) is None
            assert glance.now(fully_consistent=True) is None
            log.confirmed = False
            assert glance.now() is None  # not even in the same turn of the loop
            assert log.looks == log.versions == 0

        glancing(test, log)

    def test_a_look_that_began_before_the_call_does_not_serve_it(self) -> None:
        """A call during a look waits for the next one, which serves all calls that arrived meanwhile."""
        log = Log(commits_show=False, held=True)

        async def test(glance: Glance) -> None:
            first = asyncio.ensure_future(glance.fresh())
            await soon(lambda: log.looks == 1)
            revision = log.commit()
            later = [asyncio.ensure_future(glance.fresh()) for _ in range(3)]
            await turns()
            assert log.looks == 1
            log.go.release()
            assert await first == 0
            await soon(lambda: log.looks == 2)
            assert not any(each.done() for each in later)
            log.go.release()
            assert await asyncio.gather(*later) == [revision] * 3
            assert log.looks == 2

        glancing(test, log)

    def test_one_look_at_a_time(self) -> None:
        """However many calls come and go, at most one look runs and one waits."""
        log = Log(commits_show=False, held=True)

        async def test(glance: Glance) -> None:
            for _ in range(50):
                asked = asyncio.ensure_future(glance.fresh())
                await turns()
                asked.cancel()
            assert log.looks == 1
            log.go.release(2)
            await soon(lambda: log.looks == 2)
            last = asyncio.ensure_future(glance.fresh())
            await soon(lambda: log.looks == 3)
            log.go.release()
            await last

        glancing(test, log)

    def test_away(self) -> None:
        """A failed look fails for the calls that it serves; the next call gets a new look."""
        log = Log(commits_show=False, held=True)

        async def test(glance: Glance) -> None:
            log.away = True
            failing = [asyncio.ensure_future(glance.fresh()) for _ in range(3)]
            await soon(lambda: log.looks == 1)
            log.away = False
            after = asyncio.ensure_future(glance.fresh())
            await turns()
            log.go.release(2)
            failures = await asyncio.gather(*failing, return_exceptions=True)
            assert [type(failure) for failure in failures] == [StoreUnavailable] * 3
            assert len(set(map(id, failures))) == 3  # each has its own
            assert await after == 0

        glancing(test, log)


@pytest.mark.parametrize("commits_show", [True, False])
@pytest.mark.parametrize("away", [False, True])
def test_gone(commits_show: bool, away: bool) -> None:
    """A cancelled call does not cancel the look for others, and a look without callers disturbs none."""
    log = Log(commits_show, held=True)

    async def test(glance: Glance) -> None:
        gone, stays = (asyncio.ensure_future(glance.fresh()) for _ in range(2))
        await soon(lambda: log.looks == 1)
        gone.cancel()
        await turns()
        assert not stays.done()
        log.go.release()
        assert await stays == 0
        log.away = away and not commits_show
        left = asyncio.ensure_future(glance.fresh())
        await soon(lambda: log.looks == 2)
        left.cancel()
        log.go.release()
        await turns()
        log.away = False
        log.go.release()
        await glance.fresh()

    glancing(test, log)


def test_what_another_process_changed(store: Store, domain: Domain, database_url: str) -> None:
    """A look contains every change that another server committed before it, on each kind of database."""
    theirs = open_store(database_url)
    other = Domain(theirs, domain.clock)

    async def test(glance: Glance) -> None:
        await glance.fresh()
        for _ in range(3):
            issued = other.create()
            if domain.tail.commits_show:
                assert glance.now() is None
            assert await glance.fresh() == issued.revision
            assert glance.now() == issued.revision
            await turns()

    try:
        glancing(test, domain.tail)
    finally:
        other.close()
        theirs.close()
