"""The asyncio verifier can be closed, whatever its stream does at the same moment."""

import asyncio
from typing import Any

import pytest

import tumbler.aio
from tests.clients.python.fake_server import OWN_KEY, PATIENCE


class Broken(Exception):
    """The error that ends a call of the stream."""


class Call:
    """A call of Watch. The test decides when its next message arrives or fails."""

    def __init__(self) -> None:
        self.word: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def read(self) -> Any:
        """Wait for a message."""
        return await self.word

    def cancel(self) -> None:
        """End the call."""
        self.word.cancel()


class Stub:
    """The stub that a verifier calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def Watch(self, *_: object, **__: object) -> Call:  # noqa: N802 - its name in the contract
        """Open a stream."""
        self.calls.append(Call())
        return self.calls[-1]


@pytest.mark.parametrize("later", range(6))
@pytest.mark.parametrize("by", ["close", "cancel"])
def test_a_stream_that_breaks_in_the_same_moment(by: str, later: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing a verifier, or cancelling its task, ends it even if the stream breaks at that instant or just before."""
    stub = Stub()
    monkeypatch.setattr(tumbler.aio, "ApiKeyServiceStub", lambda _: stub)
    monkeypatch.setattr(tumbler.aio.grpc, "RpcError", Broken)
    monkeypatch.setattr(tumbler.aio, "_status", lambda _: (tumbler.aio.grpc.StatusCode.UNAVAILABLE, "broken"))

    async def life() -> None:
        verifier = tumbler.aio.Verifier("127.0.0.1:1", api_key=OWN_KEY)
        verifier._connect()
        while not stub.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        (following,) = verifier._tasks
        stub.calls[-1].word.set_exception(Broken())
        for _ in range(later):
            await asyncio.sleep(0)
        if by == "close":
            await asyncio.wait_for(verifier.close(), PATIENCE)
        else:
            following.cancel()
            done, _ = await asyncio.wait({following}, timeout=PATIENCE)
            await verifier.close()
            assert done, "it goes on for ever"

    asyncio.run(life())
