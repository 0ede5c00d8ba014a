"""The wiring of a service: what is opened is closed, also when the wiring fails halfway."""

import threading
from pathlib import Path

import pytest

from tests.e2e.service import eventually
from tests.harness import FrozenClock, World
from tumbler_server import server
from tumbler_server.store.database import Store


class Broken(Exception):
    """What the part in the middle raises."""


@pytest.mark.parametrize("part", ["Timekeeper", "Roster", "ProofCache", "Verifier", "Lane", "Lanes", "Hub", "Poller"])
def test_a_failure_on_the_way_leaves_nothing_open(
    database_url: str, tmp_path: Path, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """If a part cannot be made, those that were made before it are closed: no thread and no connection is left."""
    world = World(database_url, tmp_path / "data", clock)
    world.close()
    closed: list[Store] = []
    close = Store.close
    monkeypatch.setattr(Store, "close", lambda store: (close(store), closed.append(store)))

    def fail(*_: object, **__: object) -> None:
        raise Broken

    monkeypatch.setattr(server, part, fail)
    before = set(threading.enumerate())
    with pytest.raises(Broken):
        server.build_core(world.config, clock)
    # A thread that was connecting to the database closes its connection, and ends a moment later.
    eventually(lambda: set(threading.enumerate()) <= before)
    assert len(closed) == 1
