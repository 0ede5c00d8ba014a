"""The rules for following the Watch stream."""

import logging
import random

import grpc
import pytest

from tumbler._settings import SECOND
from tumbler._watcher import Watcher
from tumbler.v1 import api_key_service_pb2 as pb


class FakeClock:
    """A clock that stands still until it is advanced."""

    now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


class FakeSettings:
    """What a watcher needs to know."""

    logger = logging.getLogger("test")
    target = "tumbler:50051"
    only_project = ""
    heartbeat = 5.0


class FakeCache:
    """A cache that takes every message."""

    cursor = "c"

    def apply(self, *_: object) -> bool:
        """Take a message."""
        return True

    def drop_cursor(self, _: str) -> None:
        """Forget nothing."""


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every pause as long as it can be."""
    monkeypatch.setattr(random, "uniform", lambda _, most: most)


@pytest.mark.usefixtures("longest")
@pytest.mark.parametrize("delivers", [False, True])
@pytest.mark.parametrize(
    ("lasts", "pauses"), [(0.0, [0.1, 0.2, 0.4, 0.8]), (4.9, [0.1, 0.2, 0.4, 0.8]), (5.0, [0.1, 0.1, 0.1, 0.1])]
)
def test_pauses_between_streams(delivers: bool, lasts: float, pauses: list[float]) -> None:
    """Pauses grow until a stream has lasted for a heartbeat interval; a first message alone is no recovery."""
    clock = FakeClock()
    watcher = Watcher(FakeSettings(), FakeCache(), clock)  # type: ignore[arg-type]
    found = []
    for _ in pauses:
        watcher.request()
        if delivers:
            assert watcher.handle(pb.WatchResponse())
        clock.now += int(lasts * SECOND)
        found.append(watcher.stream_ended(grpc.StatusCode.UNAVAILABLE, "over"))
    assert found == pytest.approx(pauses)
