"""OLD_KEY_ENDS_ON_FIRST_USE: a rotated key works until its successor is used, at most through its grace period."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import peewee
import pytest

from tests.harness import Refused, World, at, lasting
from tests.rpc.test_claims import claim, due
from tests.webhooks.receiver import Receiver
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR
from tumbler_server.errors import StoreUnavailable
from tumbler_server.events.log import EventType
from tumbler_server.store.database import Store
from tumbler_server.verify import first_use

WEEK = 7 * DAY

ON_FIRST_USE = {"old_key_ends": api_key_pb2.OLD_KEY_ENDS_ON_FIRST_USE, "grace_period": lasting(WEEK)}

Line = tuple[pb.CreateResponse, pb.RotateResponse]


def rotated(world: World, **fields: Any) -> Line:
    """Create a key and rotate it. Return both responses."""
    created = world.create(**{"scopes": ["orders:read"], **fields})
    return created, world.rotate(created.api_key.id, **ON_FIRST_USE)


def use(world: World, text: str) -> None:
    """Verify a key, which must be valid, and write the consequences."""
    assert world.verdict(text) == "VALID"
    assert world.core.first_uses.flush()


def told(world: World, after: int) -> list[tuple[str, str, dict[str, str]]]:
    """Return type, key ID and detail of each event after the first ``after`` events."""
    events = world.events()[after:]
    return [(EventType(event.type).name, event.key_id, json.loads(event.detail)) for event in events]


class TestUntilThen:
    """Before the successor's first use."""

    def test_old_key_works(self, world: World) -> None:
        """If the successor is never used, the old key works to the end of its grace period."""
        created, _ = rotated(world)
        world.clock.advance(WEEK - 1)
        use(world, created.key)
        world.clock.advance(1)
        assert world.verdict(created.key) == "SUPERSEDED"

    def test_record_says_so(self, world: World) -> None:
        """Only the old key's record shows that it ends on first use, and when its grace period ends."""
        created, answer = rotated(world)
        old, new = world.get(created.api_key.id), world.get(answer.api_key.id)
        assert old == answer.old_api_key
        assert (old.grace_ends_on_first_use, old.grace_expire_time) == (True, at(world.clock.now + WEEK))
        assert not new.grace_ends_on_first_use
        assert not world.rotate(world.create().api_key.id).old_api_key.grace_ends_on_first_use

    def test_log_says_so(self, world: World) -> None:
        """The ROTATED event shows that the old key ends on first use, and omits the field otherwise."""
        created, answer = rotated(world)
        (*_, (happened, key_id, detail)) = told(world, 0)
        assert (happened, key_id) == ("ROTATED", created.api_key.id)
        assert (detail["old_key_ends"], detail["replaced_by_key_id"]) == ("on_first_use", answer.api_key.id)
        world.rotate(world.create().api_key.id)
        assert "old_key_ends" not in told(world, 0)[-1][2]

    def test_old_keys_own_expiry(self, world: World) -> None:
        """The grace period ends with the old key's own expiry at the latest."""
        created, answer = rotated(world, ttl=lasting(DAY))
        assert answer.old_api_key.grace_expire_time == created.api_key.expire_time

    @pytest.mark.parametrize(
        ("demand", "code"),
        [
            ({"required_scopes": ["orders:write"]}, "INSUFFICIENT_SCOPE"),
            ({"environment_id": "live"}, "ENVIRONMENT_MISMATCH"),
            ({"client_ip": "192.0.2.1"}, "IP_NOT_ALLOWED"),
            ({}, "INACTIVE"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_no_use(self, world: World, demand: dict[str, Any], code: str) -> None:
        """A denied Verify of the successor is not a use."""
        created, answer = rotated(world, allowed_cidrs=["198.51.100.0/24"] if code == "IP_NOT_ALLOWED" else [])
        if code == "INACTIVE":
            world.set_active(answer.api_key.id, active=False)
        assert world.verdict(answer.key, **demand) == code
        assert len(world.core.first_uses) == 0
        assert world.get(created.api_key.id).grace_ends_on_first_use

    @pytest.mark.parametrize("what", ["the old key", "a key rotated with a grace", "a key that was created"])
    def test_no_other_use(self, world: World, what: str) -> None:
        """A key whose use ends no other key is not recorded, and nothing is written for it."""
        created, _ = rotated(world)
        texts = {
            "the old key": created.key,
            "a key rotated with a grace": world.rotate(world.create().api_key.id).key,
            "a key that was created": world.create().key,
        }
        before = len(world.events())
        use(world, texts[what])
        assert len(world.events()) == before

    def test_revoked_successor(self, world: World) -> None:
        """If the successor is revoked before its first use, the old key keeps its grace period."""
        created, answer = rotated(world)
        world.revoke(answer.api_key.id)
        assert world.verdict(answer.key) == "REVOKED"
        assert world.core.first_uses.flush()
        world.clock.advance(WEEK - 1)
        assert world.verdict(created.key) == "VALID"


WAYS: dict[str, Callable[[World, str], object]] = {
    "Verify": lambda world, text: world.verify(text, required_scopes=["tumbler:keys:read"]),
    "Verify by a tenant's key": lambda world, text: world.verify(text, world.caller("tumbler:keys:verify")),
    "BatchVerify": lambda world, text: world.call(
        "BatchVerify", pb.BatchVerifyRequest(requests=[{"key": "no key"}, {"key": text}])
    ),
    "the caller of Get": lambda world, text: world.get(world.create().api_key.id, text),
    "the caller of Verify": lambda world, text: world.verify("no key", text),
    "the caller of BatchVerify": lambda world, text: world.call(
        "BatchVerify", pb.BatchVerifyRequest(requests=[{"key": "no key"}]), text
    ),
    "the caller of Watch": lambda world, text: world.call("Watch", pb.WatchRequest(), text),
}


class TestFirstUse:
    """What the first use does."""

    @pytest.mark.parametrize("way", WAYS)
    def test_every_use_counts(self, world: World, way: str) -> None:
        """Every VALID verdict on the successor is a use, and so is every call that it makes."""
        created, answer = rotated(world, scopes=["tumbler:keys:read", "tumbler:keys:verify"])
        WAYS[way](world, answer.key)
        assert world.core.first_uses.flush()
        assert world.verdict(created.key) == "SUPERSEDED"

    def test_use_of_a_remembered_key(self, world: World) -> None:
        """The first use counts even if the successor was already cached."""
        created, answer = rotated(world)
        assert world.verdict(answer.key, required_scopes=["orders:write"]) == "INSUFFICIENT_SCOPE"
        use(world, answer.key)
        assert world.verdict(created.key) == "SUPERSEDED"

    def test_old_key_says_so(self, world: World) -> None:
        """At the first use, the old key's grace period ends, it no longer ends on first use, and its etag changes."""
        created, answer = rotated(world)
        world.clock.advance(HOUR)
        use(world, answer.key)
        expected = api_key_pb2.ApiKey()
        expected.CopyFrom(answer.old_api_key)
        expected.MergeFrom(api_key_pb2.ApiKey(update_time=at(world.clock.now), grace_expire_time=at(world.clock.now)))
        expected.ClearField("grace_ends_on_first_use")
        found = world.get(created.api_key.id)
        assert found.etag != answer.old_api_key.etag
        expected.etag = found.etag
        assert found == expected
        assert world.verdict(created.key) == "SUPERSEDED"

    def test_events(self, world: World) -> None:
        """The first use and the old key's end are logged once, by actor `first-use`, and the audit finds no problem."""
        created, answer = rotated(world)
        world.clock.advance(HOUR)
        before = len(world.events())
        for _ in range(3):
            use(world, answer.key)
        old, new = created.api_key.id, answer.api_key.id
        assert told(world, before) == [
            ("FIRST_USED", new, {"replaces_key_id": old}),
            (
                "UPDATED",
                old,
                {
                    "fields": "grace_expire_time",
                    "old.grace_expire_time": "2030-01-08T00:00:00Z",
                    "new.grace_expire_time": "2030-01-01T01:00:00Z",
                    "first_used_key_id": new,
                },
            ),
        ]
        assert {(event.actor_key_id, event.actor_name) for event in world.events()[before:]} == {("", "first-use")}
        assert audit.run(world.core.store, world.clock)

    def test_after_the_grace(self, world: World) -> None:
        """A first use after the grace period is logged once and changes nothing."""
        created, answer = rotated(world)
        world.clock.advance(WEEK)
        before, old = len(world.events()), world.get(created.api_key.id)
        for _ in range(2):
            use(world, answer.key)
        assert [happened for happened, *_ in told(world, before)] == ["FIRST_USED"]
        assert world.get(created.api_key.id) == old

    def test_revoked_old_key(self, world: World) -> None:
        """A first use does not change a revoked key."""
        created, answer = rotated(world)
        revoked = world.revoke(created.api_key.id).api_key
        use(world, answer.key)
        assert world.get(created.api_key.id) == revoked
        assert world.verdict(created.key) == "REVOKED"

    def test_name_is_one_keys_again(self, world: World) -> None:
        """After the old key has ended, its name fits only the successor."""
        created, answer = rotated(world, name="worker")
        by_name = pb.SetActiveRequest(by_name={"project_id": "acme", "name": "worker"}, active=True)
        assert world.refused("SetActive", by_name).reason == "NAME_AMBIGUOUS"
        use(world, answer.key)
        world.clock.advance(1)
        assert world.call("SetActive", by_name).api_key.id == answer.api_key.id
        assert world.verdict(created.key) == "SUPERSEDED"

    def test_calls_of_the_old_key(self, world: World) -> None:
        """A key that rotates itself can call until its successor is used, and is then unauthenticated."""
        own = world.caller("tumbler:keys:rotate", "tumbler:keys:read")
        key_id = own.split("_")[1]
        answer = world.rotate(key_id, own, **ON_FIRST_USE)
        assert world.get(key_id, own).grace_ends_on_first_use
        assert world.get(key_id, answer.key)
        assert world.core.first_uses.flush()
        with pytest.raises(Refused) as caught:
            world.get(key_id, own)
        assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


class TestServers:
    """Several servers, and servers that die."""

    def test_another_server_hears_of_it(self, world: World, twin: World) -> None:
        """Another server refuses the old key within the staleness bound, even if it had cached it."""
        created, answer = rotated(world)
        assert twin.verdict(created.key) == "VALID"
        use(world, answer.key)
        twin.let_lapse()
        assert twin.verdict(created.key) == "SUPERSEDED"

    def test_once(self, world: World, twin: World) -> None:
        """If several servers see the first use, one writes it, and the others find it written."""
        _, answer = rotated(world)
        assert world.verdict(answer.key) == twin.verdict(answer.key) == "VALID"
        before = len(world.events())
        for server in (world, twin, world):
            assert server.core.first_uses.flush()
        assert [happened for happened, *_ in told(world, before)] == ["FIRST_USED", "UPDATED"]
        for server in (world, twin):
            use(server, answer.key)
            assert len(server.core.first_uses) == 0
        assert len(world.events()) == before + 2

    def test_crash_before_it_is_written(self, world: World) -> None:
        """A first use that was not written before a crash is written at the next use, by any server."""
        created, answer = rotated(world)
        assert world.verdict(answer.key) == "VALID"
        world.reopen()
        assert world.core.first_uses.flush()
        assert world.verdict(created.key) == "VALID"
        use(world, answer.key)
        assert world.verdict(created.key) == "SUPERSEDED"

    @pytest.mark.parametrize("fails", ["before anything is written", "between the two events", "at the commit"])
    def test_failed_write(self, world: World, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
        """A failed write of a first use leaves no trace, stays pending and is retried."""
        created, answer = rotated(world)
        before = world.events()
        with monkeypatch.context() as broken:
            if fails == "before anything is written":
                broken.setattr(Store, "write_serialized", _unavailable)
            elif fails == "between the two events":
                broken.setattr(first_use.FirstUses, "_end", _unavailable)
            else:
                broken.setattr(type(world.core.store._backend), "commit", _lost)
            assert world.verdict(answer.key) == "VALID"
            assert not world.core.first_uses.flush()
            assert len(world.core.first_uses) == 1
        assert world.events() == before
        assert world.verdict(created.key) == "VALID"
        assert world.core.first_uses.flush()
        assert len(world.core.first_uses) == 0
        assert world.verdict(created.key) == "SUPERSEDED"
        assert [happened for happened, *_ in told(world, len(before))] == ["FIRST_USED", "UPDATED"]

    def test_not_on_the_way_of_a_verify(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Verify succeeds even if the first use cannot be written."""
        _, answer = rotated(world)
        assert world.verdict(answer.key, required_scopes=["orders:write"]) == "INSUFFICIENT_SCOPE"
        monkeypatch.setattr(Store, "write_serialized", _unavailable)
        for _ in range(3):
            assert world.verdict(answer.key) == "VALID"
        assert len(world.core.first_uses) == 1


class TestLines:
    """A successor that is rotated before its first use, for example because its secret was lost."""

    def test_lost_answer(self, world: World) -> None:
        """A caller that lost the response rotates the successor named by KEY_SUPERSEDED; its use ends the old key."""
        created, lost = rotated(world)
        refused = world.refused("Rotate", pb.RotateRequest(key_id=created.api_key.id, **ON_FIRST_USE))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_SUPERSEDED")
        answer = world.rotate(refused.info.metadata["replaced_by_key_id"], **ON_FIRST_USE)
        assert world.verdict(created.key) == "VALID"
        use(world, answer.key)
        assert [world.verdict(key) for key in (created.key, lost.key, answer.key)] == [
            "SUPERSEDED",
            "SUPERSEDED",
            "VALID",
        ]

    def test_lost_answer_repeated(self, world: World) -> None:
        """A replay of Rotate names the successor and omits its secret."""
        created = world.create()
        request_id = "6f2e4a1e-9f5b-4a43-8f0c-3d0c5f6d7a10"
        first = world.rotate(created.api_key.id, request_id=request_id, **ON_FIRST_USE)
        again = world.rotate(created.api_key.id, request_id=request_id, **ON_FIRST_USE)
        assert (again.secret_omitted, again.key, again.api_key.id) == (True, "", first.api_key.id)
        other = pb.RotateRequest(key_id=created.api_key.id, request_id=request_id)
        assert world.refused("Rotate", other).code is grpc.StatusCode.ALREADY_EXISTS

    def test_events(self, world: World) -> None:
        """Each key that ends has its event, the most recent key first."""
        created, lost = rotated(world)
        answer = world.rotate(lost.api_key.id, **ON_FIRST_USE)
        before = len(world.events())
        use(world, answer.key)
        assert [(happened, key_id) for happened, key_id, _ in told(world, before)] == [
            ("FIRST_USED", answer.api_key.id),
            ("UPDATED", lost.api_key.id),
            ("UPDATED", created.api_key.id),
        ]
        assert audit.run(world.core.store, world.clock)

    @pytest.mark.parametrize("grace", [0, HOUR])
    def test_successor_rotated_with_a_grace(self, world: World, grace: int) -> None:
        """A successor that is rotated with a grace period passes on the keys that its first use would have ended."""
        created, lost = rotated(world)
        answer = world.rotate(lost.api_key.id, grace_period=lasting(grace))
        assert world.verdict(created.key) == "VALID"
        use(world, answer.key)
        assert world.verdict(created.key) == "SUPERSEDED"
        assert world.verdict(lost.key) == ("VALID" if grace else "SUPERSEDED")

    def test_first_use_of_the_one_in_between(self, world: World) -> None:
        """The first use of an intermediate successor ends the older key; it then waits for its own successor."""
        created, between = rotated(world)
        answer = world.rotate(between.api_key.id, **ON_FIRST_USE)
        use(world, between.key)
        assert [world.verdict(key) for key in (created.key, between.key)] == ["SUPERSEDED", "VALID"]
        use(world, answer.key)
        assert world.verdict(between.key) == "SUPERSEDED"

    def test_used_successor_rotated(self, world: World) -> None:
        """If each successor is used before the next rotation, each use ends exactly the previous key."""
        created, second = rotated(world)
        use(world, second.key)
        before = len(world.events())
        third = world.rotate(second.api_key.id, **ON_FIRST_USE)
        use(world, third.key)
        assert [happened for happened, *_ in told(world, before)] == ["CREATED", "ROTATED", "FIRST_USED", "UPDATED"]
        assert [world.verdict(key) for key in (created.key, second.key, third.key)] == [
            "SUPERSEDED",
            "SUPERSEDED",
            "VALID",
        ]

    def test_long_line(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a line longer than one change may end, the nearest keys end, and the others keep their grace period."""
        monkeypatch.setattr(first_use, "LINE", 2)
        line = [world.create()]
        for _ in range(4):
            line.append(world.rotate(line[-1].api_key.id, **ON_FIRST_USE))
        use(world, line[-1].key)
        expected = ["VALID", "VALID", "SUPERSEDED", "SUPERSEDED", "VALID"]
        assert [world.verdict(each.key) for each in line] == expected
        world.clock.advance(WEEK)
        assert [world.verdict(each.key) for each in line] == ["SUPERSEDED"] * 4 + ["VALID"]


class TestRequest:
    """Valid and invalid requests."""

    @pytest.mark.parametrize(
        ("ends", "grace", "fields"),
        [
            ("OLD_KEY_ENDS_ON_FIRST_USE", 0, ["grace_period"]),
            ("OLD_KEY_ENDS_ON_FIRST_USE", 30 * DAY + 1, ["grace_period"]),
            ("OLD_KEY_ENDS_ON_FIRST_USE", -1, ["grace_period"]),
            (3, HOUR, ["old_key_ends"]),
            (3, -1, ["old_key_ends", "grace_period"]),
        ],
    )
    def test_refused(self, mailing: World, receiver: Receiver, ends: Any, grace: int, fields: list[str]) -> None:
        """Rotate and ClaimRotation name each invalid field and change nothing."""
        created, token = due(mailing, receiver)
        before = mailing.events()
        asked = {"old_key_ends": ends, "grace_period": lasting(grace)}
        for method, request, key in (
            ("Rotate", pb.RotateRequest(key_id=created.api_key.id, **asked), None),
            ("ClaimRotation", pb.ClaimRotationRequest(claim_token=token, **asked), ""),
        ):
            refused = mailing.refused(method, request, key)
            assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)
        assert mailing.events() == before

    def test_rule_is_told(self, world: World) -> None:
        """A grace period of zero with OLD_KEY_ENDS_ON_FIRST_USE is refused with the reason."""
        asked = {"old_key_ends": "OLD_KEY_ENDS_ON_FIRST_USE", "grace_period": lasting(0)}
        refused = world.refused("Rotate", pb.RotateRequest(key_id=world.create().api_key.id, **asked))
        assert "grace_period: must be more than 0 with OLD_KEY_ENDS_ON_FIRST_USE" in refused.message

    @pytest.mark.parametrize(
        ("ends", "grace", "lasts"),
        [
            ("OLD_KEY_ENDS_UNSPECIFIED", None, HOUR),
            ("OLD_KEY_ENDS_AT_GRACE_END", None, HOUR),
            ("OLD_KEY_ENDS_AT_GRACE_END", 0, 0),
            ("OLD_KEY_ENDS_ON_FIRST_USE", None, HOUR),
            ("OLD_KEY_ENDS_ON_FIRST_USE", 1, 1),
            ("OLD_KEY_ENDS_ON_FIRST_USE", 30 * DAY, 30 * DAY),
        ],
    )
    def test_grace(self, world: World, ends: Any, grace: int | None, lasts: int) -> None:
        """The grace period is as requested, by default 1 hour, whenever the old key ends."""
        asked = {} if grace is None else {"grace_period": lasting(grace)}
        old = world.rotate(world.create().api_key.id, old_key_ends=ends, **asked).old_api_key
        assert old.grace_expire_time == at(world.clock.now + lasts)
        assert old.grace_ends_on_first_use == (ends == "OLD_KEY_ENDS_ON_FIRST_USE")


class TestClaim:
    """ClaimRotation with OLD_KEY_ENDS_ON_FIRST_USE."""

    def test_first_use(self, mailing: World, receiver: Receiver) -> None:
        """The first use of a claimed key ends the old key, which works until then."""
        created, token = due(mailing, receiver)
        claimed = claim(mailing, token, **ON_FIRST_USE)
        assert claimed.old_api_key.grace_ends_on_first_use
        mailing.clock.advance(6 * DAY)
        assert mailing.verdict(created.key) == "VALID"
        use(mailing, claimed.key)
        assert mailing.verdict(created.key) == "SUPERSEDED"

    def test_webhook(self, mailing: World, receiver: Receiver) -> None:
        """The key.rotated webhook says how the old key ends."""
        _, token = due(mailing, receiver)
        claimed = claim(mailing, token, **ON_FIRST_USE)
        mailing.turn()
        data = receiver.next("key.rotated").data
        assert (data["old_key_ends"], data["replaced_by_key_id"]) == ("on_first_use", claimed.api_key.id)

    def test_lost_answer(self, mailing: World, receiver: Receiver) -> None:
        """If the response of a claim is lost, the old key works on, and the successor can be rotated."""
        created, token = due(mailing, receiver)
        claim(mailing, token, **ON_FIRST_USE)
        refused = mailing.refused("ClaimRotation", pb.ClaimRotationRequest(claim_token=token, **ON_FIRST_USE), "")
        successor = refused.info.metadata["replaced_by_key_id"]
        mailing.clock.advance(6 * DAY)
        assert mailing.verdict(created.key) == "VALID"
        use(mailing, mailing.rotate(successor, **ON_FIRST_USE).key)
        assert mailing.verdict(created.key) == "SUPERSEDED"


def _unavailable(*_: object, **__: object) -> Any:
    raise StoreUnavailable


def _lost(*_: object) -> None:
    raise peewee.OperationalError("the connection is lost")
