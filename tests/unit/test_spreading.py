"""Work on the loop in portions: long work item by item, and calls by turns of projects."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace

import pytest

from tests.unit.test_lanes import turns
from tumbler_server.errors import Overloaded
from tumbler_server.rpc import spreading
from tumbler_server.rpc.spreading import AT_A_LOOK, AT_ONCE, VerifyTurns, spread
from tumbler_server.shares import CrowdLimit


@pytest.mark.parametrize(("turn", "others"), [(0.0, 5), (1_000.0, 0)], ids=["long work", "short work"])
def test_others_have_their_turn(turn: float, others: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others run between long items, short work runs without a pause, and the results keep their order."""
    monkeypatch.setattr(spreading, "TURN", turn)
    seen = 0

    async def test() -> list[int]:
        async def other() -> None:
            nonlocal seen
            while True:
                seen += 1
                await asyncio.sleep(0)

        running = asyncio.ensure_future(other())
        done = await spread(iter(range(5 * AT_A_LOOK)))
        running.cancel()
        return done

    assert asyncio.run(test()) == list(range(5 * AT_A_LOOK))
    assert seen >= others if others else seen == 0


def test_a_failure_of_an_item() -> None:
    """An item's exception propagates."""

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(spread(items()))


def taking_turns(
    test: Callable[[VerifyTurns, list[str]], Awaitable[None]], most: int = 1_000, most_each: int = 900
) -> None:
    """Run a test on a loop with VerifyTurns, and a list for the parties that had one."""

    async def run() -> None:
        await test(VerifyTurns(CrowdLimit("test", most, most_each)), [])

    asyncio.run(run())


def begin(given: VerifyTurns, had: list[str], party: str) -> "asyncio.Task[None]":
    """Have a party ask for a turn."""

    async def ask() -> None:
        if not given.now():
            await given.wait(party)
        had.append(party)

    return asyncio.ensure_future(ask())


def test_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most AT_ONCE calls begin at once within TURN, and as many again in the next one."""
    clock = SimpleNamespace(now=1_000.0)
    monkeypatch.setattr(spreading, "time", SimpleNamespace(monotonic=lambda: clock.now))

    async def test(given: VerifyTurns, _: list[str]) -> None:
        for _ in range(3):
            assert [given.now() for _ in range(AT_ONCE + 1)] == [True] * AT_ONCE + [False]
            clock.now += spreading.TURN

    taking_turns(test)


def test_so_many_in_a_turn_of_the_loop() -> None:
    """Each pass of the loop gives a turn to at most AT_ONCE waiting calls, until none is left."""

    async def test(given: VerifyTurns, had: list[str]) -> None:
        tasks = [begin(given, had, "acme") for _ in range(5 * AT_ONCE)]
        seen = [0]
        while len(had) < len(tasks):
            await asyncio.sleep(0)
            seen.append(len(had))
        assert max(later - earlier for earlier, later in itertools.pairwise(seen)) <= AT_ONCE
        await turns(2)
        assert (len(given._waiting), given._giving) == (0, False)

    taking_turns(test)


def test_projects_take_turns() -> None:
    """However many of one project's calls wait, another project's call gets its turn with the next ones."""

    async def test(given: VerifyTurns, had: list[str]) -> None:
        tasks = [begin(given, had, "acme") for _ in range(500)]
        await asyncio.sleep(0)
        tasks.append(begin(given, had, "globex"))
        await asyncio.gather(*tasks)
        assert had.index("globex") <= 3 * AT_ONCE

    taking_turns(test)


def test_nobody_passes_those_who_wait() -> None:
    """While calls wait, a new call does not get a turn at once."""

    async def test(given: VerifyTurns, had: list[str]) -> None:
        tasks = [begin(given, had, "acme") for _ in range(5 * AT_ONCE)]
        await turns(2)
        assert len(had) < len(tasks)
        assert not given.now()
        await asyncio.gather(*tasks)

    taking_turns(test)


def test_who_has_gone() -> None:
    """A call that is cancelled while it waits gets no turn, and takes none from others."""

    async def test(given: VerifyTurns, had: list[str]) -> None:
        tasks = [begin(given, had, "acme") for _ in range(10 * AT_ONCE)]
        await asyncio.sleep(0)
        for task in tasks[AT_ONCE:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turns(2)
        assert (len(given._waiting), given._giving) == (0, False)

    taking_turns(test)


def test_bounds() -> None:
    """The number of waiting calls is bounded, per project and in all."""

    async def test(given: VerifyTurns, had: list[str]) -> None:
        tasks = [begin(given, had, "acme") for _ in range(AT_ONCE + 5)]
        await asyncio.sleep(0)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 2

    taking_turns(test, most=9, most_each=3)
