"""ClaimRotation with a token that only a webhook has held."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.harness import Refused, World, at, lasting
from tests.webhooks.receiver import Receiver
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR, SECOND
from tumbler_server.events.log import EventType
from tumbler_server.keys.ledger import Ledger
from tumbler_server.secrets import pepper


def due(world: World, receiver: Receiver, **fields: object) -> tuple[pb.CreateResponse, str]:
    """Create a key, let its rotation become due, and return the response of Create and the claim token."""
    schedule = {"interval": lasting(7 * DAY), "webhook_url": receiver.url}
    created = world.create(**{"rotation": schedule, "scopes": ["orders:read"], "owner_id": "ada", **fields})
    world.clock.advance(7 * DAY)
    world.turn()
    return created, str(receiver.next("key.rotation_due").data["claim_token"])


def claim(world: World, token: str, **fields: object) -> pb.ClaimRotationResponse:
    """Claim a rotation without a key."""
    answer: pb.ClaimRotationResponse = world.call(
        "ClaimRotation", pb.ClaimRotationRequest(claim_token=token, **fields), ""
    )
    return answer


def refused(world: World, token: str, **fields: object) -> tuple[grpc.StatusCode, str]:
    """Make a claim that must be refused, and return the status code and the reason."""
    before = len(world.events())
    with pytest.raises(Refused) as caught:
        claim(world, token, **fields)
    assert len(world.events()) == before, "a refused claim changed something"
    assert token not in str(caught.value) or not token
    return caught.value.code, caught.value.reason


class TestClaim:
    """Accepted claims."""

    def test_successor(self, mailing: World, receiver: Receiver) -> None:
        """The successor has the old key's fields, its secret is shown, and the grace period starts at the claim."""
        created, token = due(mailing, receiver)
        mailing.clock.advance(HOUR)
        claimed = claim(mailing, token)
        old, new = claimed.old_api_key, claimed.api_key
        assert (old.id, old.replaced_by_key_id, new.replaces_key_id) == (created.api_key.id, new.id, old.id)
        assert (list(new.scopes), new.owner_id) == (["orders:read"], "ada")
        assert new.rotation.webhook_url == receiver.url
        assert new.rotation.next_time == at(mailing.clock.now + 7 * DAY)
        assert old.grace_expire_time == at(mailing.clock.now + HOUR)
        assert not claimed.secret_omitted
        assert mailing.verdict(claimed.key) == mailing.verdict(created.key) == "VALID"
        mailing.clock.advance(HOUR)
        assert (mailing.verdict(claimed.key), mailing.verdict(created.key)) == ("VALID", "SUPERSEDED")

    def test_no_secret_before(self, mailing: World, receiver: Receiver) -> None:
        """Before the claim, there is no successor and no secret of one."""
        due(mailing, receiver)
        assert mailing.page(project_id="acme", show_total_size=True).total_size == 1

    def test_events(self, mailing: World, receiver: Receiver) -> None:
        """The events of a claim have the actor `claim` and no actor key."""
        _, token = due(mailing, receiver)
        claim(mailing, token)
        told = [(EventType(event.type), event.actor_key_id, event.actor_name) for event in mailing.events()[-3:]]
        assert told == [
            (EventType.ROTATION_CLAIMED, "", "claim"),
            (EventType.CREATED, "", "claim"),
            (EventType.ROTATED, "", "claim"),
        ]
        assert audit.run(mailing.core.store)

    def test_grace(self, mailing: World, receiver: Receiver) -> None:
        """The claim may set the grace period; zero ends the old key at once."""
        created, token = due(mailing, receiver)
        claim(mailing, token, grace_period=lasting(0))
        assert mailing.verdict(created.key) == "SUPERSEDED"

    def test_overdue(self, mailing: World, receiver: Receiver) -> None:
        """An overdue rotation can be claimed; the reminder has the same token."""
        _, token = due(mailing, receiver)
        mailing.clock.advance(2 * DAY)
        mailing.turn()
        assert receiver.next("key.rotation_overdue").data["claim_token"] == token
        assert claim(mailing, token).key

    def test_operators_too(self, mailing: World, receiver: Receiver) -> None:
        """A key sent with a claim is ignored."""
        _, token = due(mailing, receiver)
        request = pb.ClaimRotationRequest(claim_token=token)
        assert mailing.call("ClaimRotation", request, "no key of ours").key


class TestRefused:
    """Refused claims change nothing."""

    def test_twice(self, mailing: World, receiver: Receiver) -> None:
        """A token works once."""
        _, token = due(mailing, receiver)
        claim(mailing, token)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_SUPERSEDED")

    def test_concurrently(self, mailing: World, receiver: Receiver) -> None:
        """Of many concurrent claims one succeeds, and there is one successor."""
        created, token = due(mailing, receiver)

        def attempt(_: int) -> str:
            try:
                return claim(mailing, token).key
            except Refused as failure:
                return failure.reason

        with ThreadPoolExecutor(8) as threads:
            outcomes = list(threads.map(attempt, range(16)))
        (key,) = set(outcomes) - {"KEY_SUPERSEDED"}
        assert outcomes.count(key) == 1
        assert mailing.get(created.api_key.id).replaced_by_key_id in key
        assert mailing.page(project_id="acme", show_total_size=True).total_size == 2

    def test_overtaken(self, mailing: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A claim that was valid when it began and is not when it is written changes nothing."""
        other = mailing.twin()  # a server works on one claim at a time
        _, token = due(mailing, receiver)
        both_began = threading.Barrier(2)
        make = Ledger.make

        def slowly(ledger: Ledger, prefix: str) -> object:
            both_began.wait(30)
            return make(ledger, prefix)

        monkeypatch.setattr(Ledger, "make", slowly)

        def attempt(server: World) -> str:
            try:
                return "OK" if claim(server, token).key else ""
            except Refused as failure:
                return failure.reason

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(attempt, (mailing, other))) == ["KEY_SUPERSEDED", "OK"]
        other.close()
        assert mailing.page(project_id="acme", show_total_size=True).total_size == 2

    def test_rotated_since(self, mailing: World, receiver: Receiver) -> None:
        """After a Rotate, the claim is refused with KEY_SUPERSEDED."""
        created, token = due(mailing, receiver)
        mailing.rotate(created.api_key.id)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_SUPERSEDED")

    def test_revoked_since(self, mailing: World, receiver: Receiver) -> None:
        """A claim for a revoked key is refused."""
        created, token = due(mailing, receiver)
        mailing.revoke(created.api_key.id)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_REVOKED")

    def test_switched_off_since(self, mailing: World, receiver: Receiver) -> None:
        """A deactivation voids the token forever, even after an activation; the new token works."""
        created, token = due(mailing, receiver)
        mailing.set_active(created.api_key.id, active=False)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "CLAIM_OUTDATED")
        mailing.set_active(created.api_key.id, active=True)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "CLAIM_OUTDATED")
        mailing.turn()
        newer = receiver.next("key.rotation_due").data["claim_token"]
        assert newer != token
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "CLAIM_OUTDATED")
        assert claim(mailing, newer).key

    def test_expired_since(self, mailing: World, receiver: Receiver) -> None:
        """A claim for an expired key is refused."""
        _, token = due(mailing, receiver, ttl=lasting(8 * DAY))
        mailing.clock.advance(DAY)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_EXPIRED")

    def test_another_schedule(self, mailing: World, receiver: Receiver) -> None:
        """A token is void after the interval has changed."""
        created, token = due(mailing, receiver)
        rotation = {"interval": lasting(2 * DAY), "webhook_url": receiver.url}
        mailing.update(created.api_key.id, "rotation", rotation=rotation)
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "CLAIM_OUTDATED")

    def test_another_url(self, mailing: World, receiver: Receiver) -> None:
        """A token is void after the webhook URL has changed; the new URL receives its own token."""
        created, token = due(mailing, receiver)
        rotation = {"interval": lasting(7 * DAY), "webhook_url": f"{receiver.url}/new"}
        mailing.update(created.api_key.id, "rotation", rotation=rotation)
        mailing.turn()
        assert refused(mailing, token) == (grpc.StatusCode.FAILED_PRECONDITION, "CLAIM_OUTDATED")
        sent = receiver.next("key.rotation_due")
        assert sent.path == "/hook/new"
        assert claim(mailing, sent.data["claim_token"]).key

    @pytest.mark.parametrize(
        "how", ["empty", "garbage", "cut", "padded", "respelled", "changed", "key", "page", "huge", "other peppers"]
    )
    def test_no_token_of_ours(self, mailing: World, receiver: Receiver, how: str) -> None:
        """A token that is not signed with this installation's peppers is UNAUTHENTICATED, always in the same way."""
        created, token = due(mailing, receiver)
        if how == "other peppers":
            mailing.installation.pepper_file.unlink()
            pepper.create(mailing.installation.pepper_file)
            mailing.reopen()
        shown = {
            "empty": "",
            "garbage": "claim_ghi.jkl",
            "cut": token[:-1],
            "padded": token + "=",
            "respelled": token[:-1] + chr(ord(token[-1]) + 1),  # the same bytes: this bit is not used
            "changed": token[:8] + ("A" if token[8] != "A" else "B") + token[9:],
            "key": created.key,
            "page": "claim_" + mailing.core.servicer._tokens.consistency(1),
            "huge": token * 1_000,
            "other peppers": token,
        }[how]
        assert refused(mailing, shown) == (grpc.StatusCode.UNAUTHENTICATED, "CLAIM_TOKEN_INVALID")

    def test_grace_too_long(self, mailing: World, receiver: Receiver) -> None:
        """The grace period has the rule of Rotate, and a refused claim does not use up the token."""
        _, token = due(mailing, receiver)
        code, reason = refused(mailing, token, grace_period=lasting(31 * DAY))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
        assert claim(mailing, token).key

    def test_older_pepper(self, mailing: World, receiver: Receiver) -> None:
        """A token survives a pepper rotation, because the older pepper still verifies it."""
        _, token = due(mailing, receiver)
        pepper.rotate(mailing.installation.pepper_file)
        mailing.reopen()
        assert claim(mailing, token).key


def test_from_one_rotation_to_the_next(mailing: World, receiver: Receiver) -> None:
    """A due rotation is sent, retried and claimed; then the new key takes over, until its own rotation is due."""
    created = mailing.create(rotation={"interval": lasting(7 * DAY), "webhook_url": receiver.url})
    receiver.status = 503
    mailing.clock.advance(7 * DAY)
    mailing.turn()
    first = receiver.next("key.rotation_due")
    receiver.status = 204
    mailing.clock.advance(6 * SECOND)
    mailing.turn()
    second = receiver.next("key.rotation_due")
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    claimed = claim(mailing, second.data["claim_token"])
    assert mailing.verdict(created.key) == mailing.verdict(claimed.key) == "VALID"
    mailing.turn()
    assert receiver.next("key.rotated").data["replaced_by_key_id"] == claimed.api_key.id
    mailing.clock.advance(HOUR)
    assert (mailing.verdict(created.key), mailing.verdict(claimed.key)) == ("SUPERSEDED", "VALID")
    mailing.clock.advance(7 * DAY - HOUR)
    mailing.turn()
    next_one = receiver.next("key.rotation_due")
    assert next_one.data["key_id"] == claimed.api_key.id
    assert refused(mailing, second.data["claim_token"])[1] == "KEY_SUPERSEDED"
    assert claim(mailing, next_one.data["claim_token"]).api_key.replaces_key_id == claimed.api_key.id
    found = audit.run(mailing.core.store)
    assert found, found.problems
