"""Long answers that callers have not read, counted in bytes."""

import asyncio

import pytest

from tests.unit.test_lanes import turns
from tumbler_server import shares
from tumbler_server.errors import Overloaded
from tumbler_server.limits import Limit
from tumbler_server.rpc.unsent import Unsent


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the limits: more than 3 bytes is a long answer, 20 bytes unread per project, 50 in all."""
    for name, most in (("LONG_ANSWER", 3), ("UNREAD_OF_A_PROJECT", 20), ("UNREAD", 50)):
        monkeypatch.setattr(shares, name, Limit(name, most, "bytes", ""))


async def fill(unsent: Unsent, project_id: str, size: int) -> "list[asyncio.Task[None]]":
    """Have a project leave as many answers unread as it can."""

    async def send() -> None:
        unsent.hold(project_id, b"x" * size)
        await asyncio.Event().wait()

    held = []
    while True:
        sending = asyncio.ensure_future(send())
        await turns()
        if sending.done():
            assert isinstance(sending.exception(), Overloaded)
            return held
        held.append(sending)


async def read(*calls: "asyncio.Task[None]") -> None:
    """Have the callers read their answers."""
    for call in calls:
        call.cancel()
    await turns()


def test_a_project() -> None:
    """A project with its share unread is refused, others are not, and reading makes room."""

    async def test() -> None:
        unsent = Unsent()
        held = await fill(unsent, "acme", 5)
        assert len(held) == 4
        with pytest.raises(Overloaded, match="have not been read") as refused:
            unsent.check("acme")
        assert refused.value.retry_after > 0
        unsent.check("globex")
        await read(held[0])
        unsent.check("acme")
        await read(*held[1:])
        assert (unsent._bytes.taken, dict(unsent._bytes._of)) == (0, {})

    asyncio.run(test())


def test_all() -> None:
    """However many projects leave answers unread, the total is bounded, and several have a share."""

    async def test() -> None:
        unsent = Unsent()
        for number in range(20):
            await fill(unsent, f"greedy {number}", 4)
        assert 50 - 4 <= unsent._bytes.taken < 50 + 4
        assert len(unsent._bytes._of) > 3

    asyncio.run(test())


def test_short() -> None:
    """Short answers are not counted: the number of calls bounds them."""

    async def test() -> None:
        unsent = Unsent()
        for _ in range(100):
            unsent.hold("acme", b"xxx")
        unsent.check("acme")

    asyncio.run(test())
