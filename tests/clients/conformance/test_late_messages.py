"""A verifier that receives messages late, because it is frozen or its connection slows down. No byte is lost."""

import time
from collections.abc import Callable

import pytest

from tests.clients.conformance.link import Link
from tests.clients.conformance.programs import PATIENCE
from tests.clients.conformance.scene import Scene, outcome
from tests.clients.conformance.test_outages import BOUND, LATE, QUICK
from tests.clients.python.fake_server import OWN_KEY, FakeServer, id_of, key_of
from tumbler.v1 import api_key_service_pb2 as pb

PILED = BOUND + 0.5
"""Seconds in which heartbeats pile up in the socket of a frozen process."""

HURRIED = 64
"""Calls that wait for a frozen process, and are the first thing that it sees."""


def idle(_: Scene, __: str) -> None:
    """Do nothing."""


def under_way(scene: Scene, key: str) -> None:
    """Keep calls in flight all the time."""
    scene.program.call("race_start", key=key, callers=4)


def catching_up(scene: Scene, _: str) -> None:
    """Make the stream deliver many events."""
    for _ in range(200):
        scene.create()


PHASES = (idle, under_way, catching_up)


def freeze(scene: Scene, phase: Callable[[Scene, str], None]) -> None:
    """Freeze a verifier's process, and check what it answers when it continues."""
    doomed, good = scene.create(), scene.create()
    scene.open(**QUICK)
    scene.remembered(doomed.key, good.key)
    phase(scene, doomed.key)
    with scene.program.frozen():
        time.sleep(PILED)  # so that heartbeats are queued before the event
        revoked = time.time()
        scene.service.revoke(doomed.api_key.id)
        time.sleep(PILED)
        hurried = [scene.program.begin("verify", key=doomed.key) for _ in range(HURRIED)]
    assert {outcome(answer.result(PATIENCE)) for answer in hurried} <= {"REVOKED", "unavailable"}
    scene.becomes(doomed.key, "REVOKED")
    if phase is under_way:
        raced = scene.program.call("race_stop")
        assert (raced["last_valid_began_us"] or 0) / 1_000_000 < revoked + BOUND
    scene.remembered(good.key)


@pytest.mark.parametrize("phase", PHASES)
def test_the_verifier_is_frozen(scene: Scene, phase: Callable[[Scene, str], None]) -> None:
    """A process that was frozen accepts no key that was revoked meanwhile, however much is queued in its sockets."""
    freeze(scene, phase)


def test_the_way_slows_down(scene: Scene) -> None:
    """On a connection that delivers everything, but ever later, no revoked key is valid beyond ``max_staleness``."""
    doomed, good = scene.create(), scene.create()
    with Link(scene.service.target) as link:
        scene.open(link.address, **QUICK)
        scene.remembered(doomed.key, good.key)
        link.lag()
        while link.late < BOUND + 2 * LATE:
            scene.code(doomed.key)
        revoked = time.time()
        scene.service.revoke(doomed.api_key.id)
        assert scene.last_valid(doomed.key, "unavailable") < revoked + BOUND + LATE


ODD = {
    "of another key": {"key_id": id_of(key_of(2))},
    "of no key": {"key_id": ""},
    "of no time": {"check_time": None},
    "VALID, but not valid": {"valid": False},
    "valid, but REVOKED": {"code": pb.VERIFY_CODE_REVOKED},
    "valid, of an unknown code": {"code": 77},
}


def test_the_server_makes_no_sense(scene: Scene) -> None:
    """An answer about another key, or one that contradicts itself, decides nothing and is not cached."""
    fake = FakeServer()
    try:
        answer = scene.program.call("open", target=fake.target, api_key=OWN_KEY, timeout=10_000)
        assert answer == {}
        for number, (name, lie) in enumerate(ODD.items(), 10):
            key = fake.knows(number)
            for field, value in lie.items():
                fake.answers[key].ClearField(field)
                if value:
                    setattr(fake.answers[key], field, value)
            assert outcome(scene.program.call("verify", key=key)) == "unavailable", name
        assert scene.size() == 0
    finally:
        scene.program.call("close")
        fake.stop()
