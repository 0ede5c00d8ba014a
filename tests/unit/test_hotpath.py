"""Which calls wait for bcrypt, and which share a run."""

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from tests.unit.test_lanes import PATIENCE, soon, turns
from tumbler import keyformat
from tumbler.keyformat import ParsedKey
from tumbler_server.errors import Overloaded, StoreUnavailable
from tumbler_server.freshness.glance import Glance
from tumbler_server.keys.record import Key
from tumbler_server.rpc.gathering import Gathering
from tumbler_server.rpc.hotpath import HotPath
from tumbler_server.rpc.lanes import Lane
from tumbler_server.secrets.secret import HashedSecret, generate
from tumbler_server.shares import PROOFS_OF_A_KEY, LaneLimit
from tumbler_server.verify.verifier import Doubtful, Question, Unknown, Verifier, View

HASHED = cast("HashedSecret", None)
PARSED = cast("ParsedKey", None)


def presented(key_id: str, half: str = "right", project: str = "acme", **fields: Any) -> Doubtful:
    """Return a presented key that only bcrypt can prove, with the record that this call has read."""
    asked = Unknown(f"{key_id}/{half}", key_id, f"{key_id}/{half}".encode(), PARSED)
    return Doubtful(asked, Key(id=key_id, project_id=project, **fields), HASHED, 0)


class FakeVerifier:
    """A fake verifier: each run of bcrypt blocks until the test releases it."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.stored: dict[str, Doubtful] = {}
        self.failure: Exception | None = None
        self.go = threading.Semaphore(0)
        self.stale: View | None = None

    def prove(self, doubtful: Doubtful) -> Key | None:
        self.runs.append(doubtful.asked.text)
        assert self.go.acquire(timeout=PATIENCE)
        if self.failure:
            raise self.failure
        return doubtful.key if doubtful.asked.text.endswith("right") else None

    def last_resort(self, at_least: int, fully_consistent: bool) -> View | None:
        return None if fully_consistent or at_least else self.stale


class Records:
    """A fake reader of records that answers at once."""

    def __init__(self) -> None:
        self.read: dict[str, Doubtful] = {}

    async def find(self, unknown: Unknown, _: str) -> Doubtful:
        return self.read[unknown.text]


class Away:
    """A fake glance at a database that is away, at the first question or only when the log is read."""

    def __init__(self, at_once: bool) -> None:
        self.at_once = at_once

    def now(self, *_: Any) -> int | None:
        if self.at_once:
            raise StoreUnavailable
        return None

    async def fresh(self) -> int:
        raise StoreUnavailable


class Path:
    """A hot path whose bcrypt waits for the test."""

    def __init__(self, places: int, share: int, waiting: int) -> None:
        self.verifier = FakeVerifier()
        self.records = Records()
        self.lane = Lane(LaneLimit("test", places, share, waiting, waiting))
        self.hotpath = HotPath(
            cast("Verifier", self.verifier), cast("Glance", None), cast("Gathering", self.records), self.lane
        )

    def find(self, doubtful: Doubtful) -> "asyncio.Task[Key | None]":
        """Start a call that presents a key."""
        self.records.read[doubtful.asked.text] = doubtful
        return asyncio.ensure_future(self.hotpath.find(doubtful.asked, "a caller"))

    async def runs(self, *texts: str) -> None:
        """Wait until exactly these runs have begun."""
        await soon(lambda: len(self.verifier.runs) >= len(texts))
        await turns()
        assert sorted(self.verifier.runs) == sorted(texts)


def on_path(test: Callable[[Path], Awaitable[None]], places: int = 4, share: int = 4, waiting: int = 8) -> None:
    """Run a test on a loop with its own hot path."""
    complaints = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        path = Path(places, share, waiting)
        try:
            await asyncio.wait_for(test(path), PATIENCE)
        finally:
            path.verifier.go.release(1_000)
            path.lane.close()
        await turns()
        assert not path.hotpath._flights
        assert not path.hotpath._of_a_key

    asyncio.run(run())
    assert not complaints


@pytest.mark.parametrize(("secret", "proven"), [("right", True), ("wrong", False)])
def test_a_run_is_shared(secret: str, proven: bool) -> None:
    """Calls that present the same key during its proof share one run, whatever its result."""

    async def test(path: Path) -> None:
        calls = [path.find(presented("k", secret)) for _ in range(3)]
        await path.runs(f"k/{secret}")
        calls += [path.find(presented("k", secret)) for _ in range(3)]
        await turns()
        path.verifier.go.release()
        found = await asyncio.gather(*calls)
        assert [each is not None for each in found] == [proven] * 6
        assert len(path.verifier.runs) == 1

    on_path(test)


def test_a_record_is_not_shared() -> None:
    """A call that joins a run answers with its own record, because the other's may predate a Revoke."""

    async def test(path: Path) -> None:
        before = presented("k")
        first = path.find(before)
        await path.runs("k/right")
        after = before._replace(key=dataclasses.replace(before.key, revoke_time=1))
        second = path.find(after)
        await turns()
        path.verifier.go.release()
        assert await first is before.key
        assert await second is after.key
        assert len(path.verifier.runs) == 1

    on_path(test)


def test_secrets_of_a_key() -> None:
    """At most two secrets of one key are checked at a time; a third is refused, and other keys are not affected."""
    assert PROOFS_OF_A_KEY.most == 2

    async def test(path: Path) -> None:
        calls = [path.find(presented("k", "wrong")), path.find(presented("k", "also wrong"))]
        await path.runs("k/wrong", "k/also wrong")
        for _ in range(3):
            with pytest.raises(Overloaded) as raised:
                await path.find(presented("k"))
            assert raised.value.retry_after > 0
        calls.append(path.find(presented("k", "wrong")))  # joins a run
        calls.append(path.find(presented("other")))
        await path.runs("k/wrong", "k/also wrong", "other/right")
        path.verifier.go.release(3)
        assert [each and each.id for each in await asyncio.gather(*calls)] == [None, None, None, "other"]
        last = path.find(presented("k"))
        path.verifier.go.release()
        assert await last

    on_path(test)


def test_a_run_that_its_callers_left_counts() -> None:
    """A run continues when its last caller leaves, and counts against the key's maximum until it ends."""

    async def test(path: Path) -> None:
        for secret in ("wrong", "also wrong"):
            gone = path.find(presented("k", secret))
            await soon(lambda secret=secret: f"k/{secret}" in path.verifier.runs)
            gone.cancel()
            await turns()
            assert gone.cancelled()
        with pytest.raises(Overloaded):
            await path.find(presented("k"))
        joins = path.find(presented("k", "wrong"))  # the run can still be shared
        await turns()
        path.verifier.go.release(2)
        assert await joins is None
        await soon(lambda: not path.hotpath._of_a_key)
        path.verifier.go.release()
        assert await path.find(presented("k"))
        assert len(path.verifier.runs) == 3

    on_path(test)


def test_the_last_one_who_waits() -> None:
    """A run that waits for a place is dropped when its last caller leaves, and not before."""

    async def test(path: Path) -> None:
        busy = path.find(presented("busy"))
        await path.runs("busy/right")
        waiting = [path.find(presented("k")) for _ in range(2)]
        await turns()
        waiting[0].cancel()
        await turns()
        assert path.hotpath._of_a_key["k"] == 1
        waiting[1].cancel()
        await turns()
        assert not path.hotpath._of_a_key["k"]
        another = path.find(presented("another"))  # the queue has room for one again
        await turns()
        path.verifier.go.release(2)
        assert await busy
        assert await another
        await path.runs("busy/right", "another/right")

    on_path(test, places=1, waiting=1)


def test_who_comes_after_the_last_one_left() -> None:
    """A call that arrives just after the last caller left gets its own run, not the dropped one."""

    async def test(path: Path) -> None:
        busy = path.find(presented("busy"))
        await path.runs("busy/right")
        gone = path.find(presented("k"))
        await turns()
        gone.cancel()
        await asyncio.sleep(0)
        comes = path.find(presented("k"))
        path.verifier.go.release(2)
        assert await comes
        assert await busy

    on_path(test, places=1)


def test_no_room() -> None:
    """If the queue for bcrypt is full, all calls that share the run are refused, and nothing of it remains."""

    async def test(path: Path) -> None:
        calls = [path.find(presented("a"))]
        await path.runs("a/right")
        calls.append(path.find(presented("b")))
        await turns()
        refused = await asyncio.gather(*[path.find(presented("c")) for _ in range(3)], return_exceptions=True)
        assert [type(each) for each in refused] == [Overloaded] * 3
        path.verifier.go.release(2)
        assert all(await asyncio.gather(*calls))

    on_path(test, places=1, waiting=1)


def test_a_project_does_not_take_all_places() -> None:
    """A project leaves places in the lane for other projects."""

    async def test(path: Path) -> None:
        calls = [path.find(presented(f"k{number}")) for number in range(3)]
        await path.runs("k0/right")
        calls.append(path.find(presented("theirs", project="globex")))
        await path.runs("k0/right", "theirs/right")
        path.verifier.go.release(4)
        assert all(await asyncio.gather(*calls))

    on_path(test, places=2, share=1)


@pytest.mark.parametrize("gone", [False, True])
def test_a_run_that_fails(gone: bool) -> None:
    """A failed run fails for all calls that share it; if they have left, the failure is dropped."""

    async def test(path: Path) -> None:
        path.verifier.failure = ZeroDivisionError()
        calls = [path.find(presented("k")) for _ in range(2)]
        await path.runs("k/right")
        if gone:
            for call in calls:
                call.cancel()
            await turns()
        path.verifier.go.release()
        failed = await asyncio.gather(*calls, return_exceptions=True)
        expected = asyncio.CancelledError if gone else ZeroDivisionError
        assert [type(each) for each in failed] == [expected] * 2
        await soon(lambda: not path.hotpath._flights)

    on_path(test)


def test_no_secret_is_shown() -> None:
    """The repr of a presented key contains at most its id."""
    text = generate("tmb").text
    asked = Unknown(text, keyformat.parse(text).id, b"tag", keyformat.parse(text))
    doubtful = Doubtful(asked, Key(id=asked.id, project_id="acme"), HashedSecret("bcrypt", b"digest", "pepper"), 0)
    shown = f"{Question(text)} {asked} {doubtful}"
    assert asked.id in shown
    for part in (text, keyformat.parse(text).secret, "b'tag'", "bcrypt", "digest"):
        assert part not in shown


@pytest.mark.parametrize("at_once", [True, False])
def test_an_older_view_where_that_is_allowed(at_once: bool) -> None:
    """While the database is away, --stale-if-error applies, whichever question fails."""
    verifier = FakeVerifier()
    hotpath = HotPath(
        cast("Verifier", verifier), cast("Glance", Away(at_once)), cast("Gathering", None), cast("Lane", None)
    )
    with pytest.raises(StoreUnavailable):
        asyncio.run(hotpath.view())
    verifier.stale = View(7, 5)
    assert asyncio.run(hotpath.view()) == View(7, 5)
    with pytest.raises(StoreUnavailable):
        asyncio.run(hotpath.view(fully_consistent=True))
