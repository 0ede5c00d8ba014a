"""What a verifier answers during an outage, and how it recovers."""

import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conformance.link import Link
from tests.clients.conformance.relay import Relay
from tests.clients.conformance.scene import Scene
from tests.e2e.service import Service

BOUND = 2.0
LATE = 0.5
"""Seconds that a busy machine may take to read a message that has arrived. The bound counts from then."""
NOTICED = 10.0
"""Seconds within which no more requests go to a server that is stopped."""
QUICK = {"heartbeat": 1_000, "max_staleness": int(BOUND * 1_000), "timeout": 1_000}


@pytest.mark.parametrize("spoil", [Link.refuse, Link.stall], ids=["refused", "held up"])
def test_the_way_is_broken_and_healed(scene: Scene, spoil: Callable[[Link], None]) -> None:
    """Without a connection to the server, nothing is valid for longer than ``max_staleness``. Then all is as before."""
    doomed, good = scene.create(), scene.create()
    with Link(scene.service.target) as link:
        scene.open(link.address, **QUICK)
        scene.remembered(doomed.key, good.key)
        spoil(link)
        broken = time.time()
        scene.service.revoke(doomed.api_key.id)
        assert scene.last_valid(doomed.key, "unavailable") < broken + BOUND + LATE
        assert scene.code(good.key) == "unavailable"
        link.heal()
        scene.becomes(doomed.key, "REVOKED")
        scene.becomes(good.key, "VALID")
        scene.remembered(good.key)


def test_a_way_that_breaks_again_and_again_is_no_outage(scene: Scene) -> None:
    """Connections that break and can be made again neither fail a verification nor lose a change."""
    doomed, good = scene.create(), scene.create()
    with Link(scene.service.target) as link:
        scene.open(link.address)
        scene.remembered(doomed.key, good.key)
        for _ in range(10):
            link.cut()
            assert [scene.code(good.key) for _ in range(20)] == ["VALID"] * 20
        scene.service.revoke(doomed.api_key.id)
        scene.becomes(doomed.key, "REVOKED")
        scene.remembered(good.key)


def test_a_change_that_was_missed_is_caught_up(scene: Scene) -> None:
    """Changes made while the stream was broken are delivered first when it is open again."""
    doomed, good = scene.create(), scene.create()
    with Link(scene.service.target) as link:
        scene.open(link.address)
        scene.remembered(doomed.key, good.key)
        link.refuse()
        scene.service.revoke(doomed.api_key.id)
        assert scene.code(good.key) == "VALID"
        link.heal()
        scene.becomes(doomed.key, "REVOKED")
        assert scene.verify(good.key)["cached"] is True


def test_a_server_that_comes_later_is_found(scene: Scene) -> None:
    """A verifier created before its server is reachable reports that, and works as soon as the server is."""
    key = scene.create().key
    with Link(scene.service.target) as link:
        link.refuse()
        scene.open(link.address, settled=False)
        assert scene.code(key) == "unavailable"
        link.heal()
        scene.becomes(key, "VALID")
        scene.remembered(key)


def test_the_server_is_frozen(own_scene: Scene) -> None:
    """While the server is frozen, nothing is valid for longer than ``max_staleness``. Afterwards keys are again."""
    scene = own_scene
    remembered, other = scene.create().key, scene.create().key
    scene.open(**QUICK)
    scene.remembered(remembered)
    scene.service.signal(signal.SIGSTOP)
    try:
        frozen = time.time()
        assert scene.last_valid(remembered, "unavailable") < frozen + BOUND + LATE
        assert scene.verify_together((remembered, {}), (other, {})) == ["unavailable"] * 2
    finally:
        scene.service.signal(signal.SIGCONT)
    scene.becomes(remembered, "VALID")
    scene.remembered(remembered, other)


def test_one_of_two_servers_stands_still(scene: Scene) -> None:
    """A stopped server whose kernel still acknowledges is detected within ten seconds. Then the other one answers.

    The cache is off, because it would answer without a server.
    """
    key = scene.create().key
    with Relay(scene.service.target) as still, Relay(scene.service.target) as healthy:
        scene.open(f"ipv4:{still.address},{healthy.address}", settled=False, cache_size=0, timeout=2_000)
        scene.becomes(key, "VALID")
        assert scene.answered(key, 1.0) == {"VALID"}
        still.stop()
        stopped = time.monotonic()
        while scene.answered(key, 3.0) != {"VALID"}:
            assert time.monotonic() < stopped + NOTICED
        still.go_on()
        assert scene.answered(key, 1.0) == {"VALID"}


def test_the_server_is_restarted(own_scene: Scene) -> None:
    """While the server restarts, cached keys are valid. The new process's changes are delivered."""
    scene = own_scene
    doomed, good = scene.create(), scene.create()
    scene.open()
    scene.remembered(doomed.key, good.key)
    assert scene.service.stop() == 0
    assert scene.code(good.key) == "VALID"
    assert scene.code(scene.own.key) == "unavailable"
    scene.service.start(listen=scene.service.target)
    scene.service.revoke(doomed.api_key.id)
    scene.becomes(doomed.key, "REVOKED")
    scene.becomes(good.key, "VALID")
    scene.remembered(good.key)


def test_an_older_backup_is_restored(own_scene: Scene) -> None:
    """If the log goes back, everything is evicted: a key created since the backup does not exist any more."""
    scene = own_scene
    kept = scene.create()
    backup = copied(scene.service)
    lost = scene.create()
    scene.open()
    scene.remembered(kept.key, lost.key)
    assert scene.service.stop() == 0
    restore(scene.service, backup)
    scene.service.start(listen=scene.service.target)
    scene.becomes(lost.key, "NOT_FOUND")
    scene.becomes(kept.key, "VALID")
    scene.remembered(kept.key)
    scene.service.revoke(kept.api_key.id)
    scene.becomes(kept.key, "REVOKED")


def test_an_older_backup_is_restored_and_the_log_has_grown(own_scene: Scene) -> None:
    """If the log went back and has new events at the lost revisions, everything is evicted all the same."""
    scene = own_scene
    doomed, good = scene.create(), scene.create()
    backup, target = copied(scene.service), scene.service.target
    for _ in range(3):
        scene.create()
    scene.open(**QUICK)
    scene.remembered(doomed.key, good.key)
    assert scene.service.stop() == 0
    restore(scene.service, backup)
    scene.service.start()  # at an address that no client knows
    scene.service.revoke(doomed.api_key.id)
    for _ in range(5):
        scene.create()
    assert scene.service.stop() == 0
    scene.becomes(good.key, "unavailable")
    scene.service.start(listen=target)
    scene.remembered(good.key)  # so a stream that was opened since is up to date
    assert scene.code(doomed.key) == "REVOKED"


def test_the_verifiers_own_key_is_revoked(scene: Scene) -> None:
    """A verifier whose own key is refused gives no answers, not even cached ones."""
    key = scene.create().key
    scene.open()
    scene.remembered(key)
    scene.service.revoke(scene.own.api_key.id)
    scene.becomes(key, "not_allowed")
    assert scene.size() == 0


def test_the_verifiers_own_key_loses_its_scope_and_gets_it_back(scene: Scene) -> None:
    """A verifier that may no longer verify reports that, and continues when it may again."""
    key = scene.create().key
    scene.open()
    scene.remembered(key)
    scene.update(scene.own.api_key.id, scopes=["orders:read"])
    scene.becomes(key, "not_allowed")
    scene.update(scene.own.api_key.id, scopes=["tumbler:keys:verify"])
    scene.becomes(key, "VALID")
    scene.remembered(key)


def database(service: Service) -> Path:
    """Return the file of a server's embedded database."""
    return service.data_dir / "tumbler.db"


def copied(service: Service) -> Path:
    """Back up a server's database while it is served."""
    backup = service.data_dir / "backup.db"
    with sqlite3.connect(database(service)) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    source.close()
    target.close()
    return backup


def restore(service: Service, backup: Path) -> None:
    """Replace a stopped server's database with a backup."""
    for suffix in ("-wal", "-shm"):
        Path(f"{database(service)}{suffix}").unlink(missing_ok=True)
    backup.replace(database(service))
