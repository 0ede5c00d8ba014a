"""A verifier that receives messages late, because it is frozen or its connection slows down. No byte is lost."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.clients.conformance.link import Link
from tests.clients.conformance.programs import PATIENCE
from tests.clients.conformance.scene import Scene, outcome
from tests.clients.conformance.test_outages import BOUND, LATE, QUICK
from tests.clients.python.fake_server import NOW, OWN_KEY, FakeServer, id_of, key_of
from tests.e2e.service import eventually
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


DELAY = 1.5 * BOUND
"""Seconds by which a connection is late: more than what is trusted."""

WAYS = {"to the client": ("client",), "to the server": ("server",), "both ways": ("client", "server")}


def delay(scene: Scene, way: str) -> None:
    """Delay a connection by a constant time, and check what a verifier answers meanwhile and afterwards."""
    doomed, good = scene.create(), scene.create()
    with Link(scene.service.target) as link:
        scene.open(link.address, **QUICK | {"timeout": 10_000})
        scene.remembered(doomed.key, good.key)
        link.delay(*WAYS[way], by=DELAY)
        revoked = time.time()
        scene.service.revoke(doomed.api_key.id)
        while time.time() < revoked + BOUND + LATE:
            scene.code(doomed.key)
        late = [scene.program.begin("verify", key=doomed.key) for _ in range(HURRIED)]
        assert {outcome(answer.result(PATIENCE)) for answer in late} <= {"REVOKED", "unavailable"}
        assert "VALID" not in scene.answered(doomed.key, DELAY)
        link.heal()
        scene.becomes(doomed.key, "REVOKED")
        scene.remembered(good.key)


def test_the_way_is_slow(scene: Scene) -> None:
    """On a connection with a constant delay, no revoked key is valid beyond ``max_staleness``."""
    delay(scene, "both ways")  # `frozen` tries each


def duplicate(scene: Scene) -> None:
    """Let an old connection go on beside its successor, and check that nothing counts that it delivers late."""
    doomed, good = scene.create(), scene.create()
    with Link(scene.service.target) as link:
        scene.open(link.address, **QUICK)
        scene.remembered(doomed.key, good.key)
        link.hold_back()
        scene.becomes(good.key, "unavailable")
        scene.remembered(doomed.key, good.key)  # so there is a second connection
        scene.service.revoke(doomed.api_key.id)
        scene.becomes(doomed.key, "REVOKED")
        link.swap()
        assert "VALID" not in scene.answered(doomed.key, 2 * BOUND)
        link.heal()
        scene.becomes(doomed.key, "REVOKED")
        scene.remembered(good.key)


def test_an_old_connection_goes_on(scene: Scene) -> None:
    """What an old connection delivers late, beside its successor, makes no revoked key valid."""
    duplicate(scene)


END = Timestamp(seconds=253_402_300_800)
"""The first instant after the year 9999, so not a valid time."""

ODD: dict[str, dict[str, Any]] = {
    "of another key": {"key_id": id_of(key_of(2))},
    "of no key": {"key_id": ""},
    "of no time": {"check_time": None},
    "checked after the year 9999": {"check_time": END},
    "checked at a time that overflows": {"check_time": Timestamp(seconds=2**62)},
    "checked at a time with too many nanoseconds": {"check_time": Timestamp(seconds=NOW, nanos=10**9)},
    "expires after the year 9999": {"expire_time": END},
    "in grace until after the year 9999": {"grace_expire_time": END},
    "VALID, but not valid": {"valid": False},
    "valid, but REVOKED": {"code": pb.VERIFY_CODE_REVOKED},
    "valid, of an unknown code": {"code": 77},
    "VALID, but expired when it was checked": {"expire_time": Timestamp(seconds=NOW)},
    "VALID, but superseded when it was checked": {"grace_expire_time": Timestamp(seconds=NOW)},
    "VALID, but for other networks": {"allowed_cidrs": ["192.0.2.0/24"]},
    "VALID, but of another environment": {"environment_id": "test"},
    "VALID, but without the scope": {"scopes": ["orders:write"]},
    "IP_NOT_ALLOWED, but for all networks": {"valid": False, "code": pb.VERIFY_CODE_IP_NOT_ALLOWED},
    "INSUFFICIENT_SCOPE, but with the scope": {"valid": False, "code": pb.VERIFY_CODE_INSUFFICIENT_SCOPE},
}


@pytest.fixture
def fake(scene: Scene) -> Iterator[FakeServer]:
    """Yield a server whose answers the test chooses, with a verifier that has opened its stream."""
    fake = FakeServer()
    try:
        bounds = {"max_staleness": BOUND * 1000, "heartbeat": 1_000, "timeout": 10_000}
        assert scene.program.call("open", target=fake.target, api_key=OWN_KEY, **bounds) == {}
        yield fake
    finally:
        scene.program.call("close")
        fake.stop()


def test_the_answer_is_late(scene: Scene, fake: FakeServer) -> None:
    """An answer that arrives later than ``max_staleness`` after its call was sent decides nothing."""
    key = fake.knows(1)
    release = fake.hold(key)
    waiting = scene.program.begin("verify", key=key)
    fake.await_held(key)
    time.sleep(BOUND + 0.5)
    release()
    assert outcome(waiting.result(PATIENCE)) == "unavailable"
    assert outcome(scene.program.call("verify", key=key)) == "VALID"


def test_the_answer_is_older_than_an_event(scene: Scene, fake: FakeServer) -> None:
    """An answer of a lower revision than an event of the key that came before the call decides nothing."""
    key = fake.knows(1)
    eventually(lambda: scene.program.call("verify", key=key).get("cached"), PATIENCE)
    fake.send(key)
    eventually(lambda: scene.size() == 0, PATIENCE)
    newest, fake.revision = fake.revision, fake.revision - 1
    assert outcome(scene.program.call("verify", key=key)) == "unavailable"
    fake.revision = newest
    assert outcome(scene.program.call("verify", key=key)) == "VALID"


FROM = "203.0.113.9"

UNUSUAL: dict[str, tuple[dict[str, Any], bool]] = {
    "a code of a later version": ({"valid": False, "code": 77}, False),
    "NOT_FOUND, at no possible time": ({"valid": False, "code": pb.VERIFY_CODE_NOT_FOUND, "check_time": END}, False),
    "a network that cannot be read": ({"allowed_cidrs": ["nonsense"]}, False),
    "a network that cannot be read, beside another": ({"allowed_cidrs": ["nonsense", "203.0.113.0/24"]}, True),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_the_answer_is_unusual(scene: Scene, fake: FakeServer, name: str) -> None:
    """An answer that is only unusual decides: what this version does not understand denies."""
    changes, valid = UNUSUAL[name]
    if changes.get("allowed_cidrs") == ["nonsense"]:
        changes = {**changes, "valid": False, "code": pb.VERIFY_CODE_IP_NOT_ALLOWED}
    key = fake.knows(1)
    _change(fake, key, changes)
    found = scene.program.call("verify", key=key, client_ip=FROM)
    assert "code" in found, found
    assert found["valid"] is valid


def _change(fake: FakeServer, key: str, changes: dict[str, Any]) -> None:
    for field, value in changes.items():
        fake.answers[key].ClearField(field)
        if value:
            fake.answers[key].MergeFrom(pb.VerifyResponse(**{field: value}))


def test_the_server_makes_no_sense(scene: Scene, fake: FakeServer) -> None:
    """An answer about another key, or one that contradicts itself, decides nothing and is not cached."""
    demand = {"required_scopes": ["orders:read"], "client_ip": FROM, "environment_id": "live"}
    good = fake.knows(9, environment_id="live")
    assert outcome(scene.program.call("verify", key=good, **demand)) == "VALID"
    known = scene.size()
    for number, (name, lie) in enumerate(ODD.items(), 10):
        key = fake.knows(number, environment_id="live")
        _change(fake, key, lie)
        assert outcome(scene.program.call("verify", key=key, **demand)) == "unavailable", name
    assert scene.size() == known
