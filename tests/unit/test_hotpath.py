"""Proofs by bcrypt on the way of a Verify: who shares a run, and how many may be under way."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from tests.domain import PATIENCE
from tumbler.decide import Code
from tumbler_server.errors import Overloaded
from tumbler_server.events.glance import Glance
from tumbler_server.keys.record import Key, Sealed
from tumbler_server.keys.verifier import Doubtful, Question, Unknown, Verdict, Verifier, View
from tumbler_server.rpc.gathering import Gathering
from tumbler_server.rpc.hotpath import MOST_PROVEN, HotPath
from tumbler_server.rpc.lanes import Lane
from tumbler_server.shares import PROOFS_OF_A_KEY, LaneLimit

NEWEST = View(1)

PLACES = 4
"""How many proofs are under way at a time in most tests, all of them of any project."""

WAITING = 8
"""How many more may wait."""


class Proofs:
    """A verifier that knows no key and cannot tell by a digest: it counts its runs, and ends each when it may.

    A presented text is ``key/secret``; the right secret is ``right``.
    """

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun = threading.Semaphore(0)
        self.runs: list[str] = []
        self.failure: Exception | None = None

    def recall(self, text: str) -> Unknown:
        return Unknown(text, text.partition("/")[0], text.encode(), None)

    def prove(self, doubtful: Doubtful) -> Key | None:
        self.runs.append(doubtful.asked.text)
        self.begun.release()
        assert self.may_end.wait(PATIENCE)
        if self.failure:
            raise self.failure
        return doubtful.key if doubtful.asked.text.endswith("/right") else None

    def judge(self, key: Key | None, _demand: object, view: View, now: int) -> Verdict:
        return Verdict(Code.VALID if key else Code.NOT_FOUND, now, view, key)

    def now(self) -> int:
        return 0


class Reads:
    """Finds of every key a record whose secret only bcrypt can prove. Its project is the first letter of its id."""

    async def find(self, unknown: Unknown, _party: str) -> Doubtful:
        return Doubtful(unknown, Key(id=unknown.id, project_id=unknown.id[:1]), cast("Sealed", None), 0)


@pytest.fixture
def proofs() -> Iterator[Proofs]:
    """Give bcrypt, as it were."""
    proofs = Proofs()
    yield proofs
    proofs.may_end.set()


Ask = Callable[[str], "asyncio.Future[Verdict]"]


def on_a_path(
    proofs: Proofs, scene: Callable[[HotPath, Ask], Awaitable[None]], places: int = PLACES, share: int = PLACES
) -> None:
    """Play a scene on a loop of its own. What is asked has come as far as it can once ``settled`` has returned."""
    lane = Lane(LaneLimit("test", places, share, WAITING, WAITING))

    async def play() -> None:
        path = HotPath(cast("Verifier", proofs), cast("Glance", None), cast("Gathering", Reads()), lane)
        await asyncio.wait_for(
            scene(path, lambda text: asyncio.ensure_future(path.verify(Question(text), NEWEST, "p"))), PATIENCE
        )

    try:
        asyncio.run(play())
    finally:
        proofs.may_end.set()
        lane.close()


async def settled() -> None:
    """Let all who can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def begin(proofs: Proofs, runs: int = 1) -> None:
    """Wait until so many more runs have begun."""
    for _ in range(runs):
        assert await asyncio.to_thread(proofs.begun.acquire, timeout=PATIENCE)


def refused(asked: "asyncio.Future[Verdict]") -> bool:
    """Say whether a caller was refused with a time to come back."""
    if not asked.done():
        return False
    failure = asked.exception()
    return isinstance(failure, Overloaded) and failure.retry_after > 0


class TestSharedRuns:
    """Many who present the same key."""

    @pytest.mark.parametrize(("text", "code"), [("a/right", Code.VALID), ("a/wrong", Code.NOT_FOUND)])
    def test_one_run(self, proofs: Proofs, text: str, code: Code) -> None:
        """Callers who present the same key at the same time share one run and its answer."""

        async def scene(_: HotPath, ask: Ask) -> None:
            callers = [ask(text) for _ in range(32)]
            await begin(proofs)
            callers += [ask(text) for _ in range(32)]
            await settled()
            proofs.may_end.set()
            assert [verdict.code for verdict in await asyncio.gather(*callers)] == [code] * 64

        on_a_path(proofs, scene)
        assert proofs.runs == [text]

    def test_other_secrets(self, proofs: Proofs) -> None:
        """Another secret of the same key is another run, with its own answer."""
        proofs.may_end.set()

        async def scene(_: HotPath, ask: Ask) -> None:
            verdicts = await asyncio.gather(ask("a/wrong"), ask("a/right"))
            assert [verdict.code for verdict in verdicts] == [Code.NOT_FOUND, Code.VALID]

        on_a_path(proofs, scene)
        assert sorted(proofs.runs) == ["a/right", "a/wrong"]

    def test_not_remembered(self, proofs: Proofs) -> None:
        """A run that is over is forgotten: whoever comes later has one made."""
        proofs.may_end.set()

        async def scene(_: HotPath, ask: Ask) -> None:
            await ask("a/wrong")
            await ask("a/wrong")

        on_a_path(proofs, scene)
        assert proofs.runs == ["a/wrong"] * 2

    def test_failure(self, proofs: Proofs) -> None:
        """A run that fails fails for all who share it, and does not stay in the way of the next."""
        proofs.failure = ValueError("broken hash")

        async def scene(_: HotPath, ask: Ask) -> None:
            callers = [ask("a/right"), ask("a/right")]
            await begin(proofs)
            proofs.may_end.set()
            for failure in await asyncio.gather(*callers, return_exceptions=True):
                assert failure is proofs.failure
            proofs.failure = None
            assert await ask("a/right")

        on_a_path(proofs, scene)

    def test_one_leaves(self, proofs: Proofs) -> None:
        """A caller who goes takes nothing from those who share the run."""

        async def scene(_: HotPath, ask: Ask) -> None:
            gone, stays = ask("a/right"), ask("a/right")
            await begin(proofs)
            gone.cancel()
            await settled()
            proofs.may_end.set()
            assert await stays

        on_a_path(proofs, scene)
        assert proofs.runs == ["a/right"]


class TestNobodyWaits:
    """Callers who go."""

    def test_not_begun(self, proofs: Proofs) -> None:
        """A run for which nobody waits any more is not begun, and leaves its place in the queue."""

        async def scene(_: HotPath, ask: Ask) -> None:
            first = ask("a/right")
            await begin(proofs)
            for _ in range(3):  # more than may wait, one after the other
                gone = [ask(f"b{number}/right") for number in range(WAITING)]
                await settled()
                for caller in gone:
                    caller.cancel()
                await settled()
            last = ask("c/right")
            proofs.may_end.set()
            assert await first
            assert await last

        on_a_path(proofs, scene, places=1, share=1)
        assert proofs.runs == ["a/right", "c/right"]

    def test_come_again(self, proofs: Proofs) -> None:
        """Whoever presents a key whose run was given up before it began has one made."""

        async def scene(_: HotPath, ask: Ask) -> None:
            first, gone = ask("a/right"), ask("b/right")
            await begin(proofs)
            gone.cancel()
            await asyncio.sleep(0)
            again = ask("b/right")
            proofs.may_end.set()
            assert await first
            assert await again

        on_a_path(proofs, scene, places=1, share=1)
        assert proofs.runs == ["a/right", "b/right"]

    def test_begun(self, proofs: Proofs) -> None:
        """A run that has begun goes on and counts against its key; whoever presents the same key again joins it."""

        async def scene(_: HotPath, ask: Ask) -> None:
            gone = [ask(f"a/{number}") for number in range(PROOFS_OF_A_KEY.most)]
            await begin(proofs, len(gone))
            for caller in gone:
                caller.cancel()
            await settled()
            late, again = ask("a/right"), ask("a/0")
            await settled()
            assert refused(late)
            proofs.may_end.set()
            assert (await again).code is Code.NOT_FOUND
            assert await ask("a/right")

        on_a_path(proofs, scene)
        assert proofs.runs.count("a/0") == 1


class TestBounds:
    """Too many who ask."""

    def test_secrets_of_a_key(self, proofs: Proofs) -> None:
        """Two secrets of one key are checked at a time; a third is refused at once, and other keys are not."""

        async def scene(_: HotPath, ask: Ask) -> None:
            callers = [ask(f"a/{number}") for number in range(2)]
            await begin(proofs, 2)
            third, other = ask("a/right"), ask("b/right")
            await settled()
            assert refused(third)
            proofs.may_end.set()
            assert await other
            await asyncio.gather(*callers)
            assert await ask("a/right")

        on_a_path(proofs, scene)
        assert PROOFS_OF_A_KEY.most == 2

    def test_queue(self, proofs: Proofs) -> None:
        """One run more than may wait is refused at once, but nobody who joins one; later there is room again."""

        async def scene(_: HotPath, ask: Ask) -> None:
            for _ in range(2):
                proofs.may_end.clear()
                callers = [ask(f"{number:02}/right") for number in range(PLACES + WAITING)]
                await begin(proofs, PLACES)
                joined, beyond = ask(f"{PLACES:02}/right"), ask("zz/right")
                await settled()
                assert refused(beyond)
                assert not joined.done()
                proofs.may_end.set()
                assert all(await asyncio.gather(*callers, joined))
                await begin(proofs, WAITING)

        on_a_path(proofs, scene)

    def test_project(self, proofs: Proofs) -> None:
        """A project's keys hold its share of the places; another's is begun at once."""

        async def scene(_: HotPath, ask: Ask) -> None:
            crowd = [ask(f"a{number}/right") for number in range(4)]
            await begin(proofs)
            other = ask("b/right")
            await begin(proofs)
            assert proofs.runs == ["a0/right", "b/right"]
            proofs.may_end.set()
            assert all(await asyncio.gather(*crowd, other))

        on_a_path(proofs, scene, places=2, share=1)

    def test_batch(self, proofs: Proofs) -> None:
        """A batch has one run at a time, and so many in all: beyond that it is refused."""
        proofs.may_end.set()

        async def scene(path: HotPath, _: Ask) -> None:
            questions = [Question(f"{number}/right") for number in range(MOST_PROVEN + 1)]
            verdicts = await path.verify_all(questions[1:], NEWEST, "p")
            assert all(verdicts)
            assert len(verdicts) == MOST_PROVEN
            with pytest.raises(Overloaded):
                await path.verify_all(questions, NEWEST, "p")

        on_a_path(proofs, scene)
        assert len(proofs.runs) == 2 * MOST_PROVEN

    def test_turn_of_a_batch(self, proofs: Proofs) -> None:
        """While a batch is proven, another caller's key comes in between."""

        async def scene(path: HotPath, ask: Ask) -> None:
            questions = [Question(f"b{number}/right") for number in range(10)]
            batch: Any = asyncio.ensure_future(path.verify_all(questions, NEWEST, "p"))
            await begin(proofs)
            single = ask("a/right")
            await settled()
            proofs.may_end.set()
            assert await single
            assert all(await batch)

        on_a_path(proofs, scene, places=1, share=1)
        assert proofs.runs[:2] == ["b0/right", "a/right"]
