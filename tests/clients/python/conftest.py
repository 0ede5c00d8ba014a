"""Both verifiers behind one interface, so that each test runs with each."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import pytest

import tumbler
import tumbler.aio
from tests.clients.python.fake_server import OWN_KEY, PATIENCE, FakeServer


class Clock:
    """Microseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 5_000_000

    def __call__(self) -> int:
        return self.now

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * 1_000_000)


class Threads:
    """A `tumbler.Verifier`."""

    def __init__(self, target: str, **options: Any) -> None:
        self.verifier = tumbler.Verifier(target, **options)
        self._threads = futures.ThreadPoolExecutor(600)

    def verify(self, key: str, **demand: Any) -> tumbler.Verification:
        """Verify a key."""
        return self.verifier.verify(key, **demand)

    def begin(self, key: str, **demand: Any) -> "futures.Future[tumbler.Verification]":
        """Start to verify a key."""
        return self._threads.submit(self.verifier.verify, key, **demand)

    def close(self) -> None:
        """Close the verifier."""
        self.verifier.close()

    def end(self) -> None:
        """Close the verifier and its threads."""
        self.close()
        self._threads.shutdown()


class Loop:
    """A `tumbler.aio.Verifier`, in an event loop with its own thread."""

    def __init__(self, target: str, **options: Any) -> None:
        self.verifier = tumbler.aio.Verifier(target, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self.verifier.__aenter__())

    def verify(self, key: str, **demand: Any) -> tumbler.Verification:
        """Verify a key."""
        return self._run(self.verifier.verify(key, **demand))

    def begin(self, key: str, **demand: Any) -> "futures.Future[tumbler.Verification]":
        """Start to verify a key."""
        return asyncio.run_coroutine_threadsafe(self.verifier.verify(key, **demand), self._loop)

    def close(self) -> None:
        """Close the verifier."""
        self._run(self.verifier.close())

    def end(self) -> None:
        """Close the verifier and its event loop."""
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


@pytest.fixture
def unwritable() -> Iterator[logging.Logger]:
    """Yield the logger of the clients, which raises an error for each record. So do the guards'."""

    def fails(_: logging.LogRecord) -> bool:
        raise OSError("no space left on device")

    loggers = [logging.getLogger(name) for name in ("tumbler", "tumbler.guards")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addFilter(fails)
    yield loggers[0]
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
        logger.removeFilter(fails)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """Yield a fake server."""
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def passing() -> Clock:
    """Return a clock."""
    return Clock()


@pytest.fixture(params=[Threads, Loop], ids=["sync", "aio"])
def opened(request: pytest.FixtureRequest, fake: FakeServer, passing: Clock) -> Iterator[Callable[..., Any]]:
    """Yield a function that creates a verifier, and waits for the stream's first message if the server sends one."""
    made = []

    def make(**options: Any) -> Any:
        options = {"api_key": OWN_KEY, "clock": passing, "timeout": PATIENCE, **options}
        verifier = request.param(options.pop("target", fake.target), **options)
        made.append(verifier)
        if options.get("watch", True) and fake.greets and fake.refuses_streams is None:
            fake.handled(verifier)
        return verifier

    yield make
    for verifier in made:
        verifier.end()


@pytest.fixture
def verifier(opened: Callable[..., Any]) -> Any:
    """Return a verifier that follows the stream."""
    return opened()
