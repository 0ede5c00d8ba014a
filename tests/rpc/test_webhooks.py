"""Webhooks: messages, signatures, retries, and what callers can see and change."""

import base64
import json
import socket
import threading
from datetime import datetime, timezone

import grpc
import pytest
from standardwebhooks.webhooks import Webhook

from tests.harness import Refused, World, at, lasting
from tests.receivers import Receiver as BadReceiver
from tests.webhooks.backlog import pile_up
from tests.webhooks.receiver import Receiver, Sent
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2
from tumbler_server import doctor
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.secrets import pepper
from tumbler_server.store.models import DeliveryRow, EndpointRow
from tumbler_server.webhooks import upkeep
from tumbler_server.webhooks.dispatch import LANES
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.targets import Judge, Resolver, TargetRules

EVER = {"interval": lasting(3_650 * DAY)}
"""A schedule with no event during a test."""


def watched(world: World, receiver: Receiver, **fields: object) -> pb.CreateResponse:
    """Create a key whose webhooks go to the receiver."""
    return world.create(**{"rotation": EVER | {"webhook_url": receiver.url}, **fields})


def deliveries(world: World, **fields: object) -> list[event_pb2.WebhookDelivery]:
    """Return the deliveries that the operator sees, newest first."""
    return list(world.call("ListDeliveries", pb.ListDeliveriesRequest(**fields)).deliveries)


def only(world: World) -> event_pb2.WebhookDelivery:
    """Return the only delivery."""
    (delivery,) = deliveries(world)
    return delivery


def state(delivery: event_pb2.WebhookDelivery) -> str:
    """Return a delivery's state, without its prefix."""
    return event_pb2.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")


def signed(sent: Sent, secret: str) -> bool:
    """Return whether a webhook carries a signature by ``secret``, at any time: the frozen clock is in 2030."""
    when = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), timezone.utc)
    signature = Webhook(secret).sign(sent.headers["webhook-id"], when, sent.body)
    return signature in sent.headers["webhook-signature"].split(" ")


class TestMessages:
    """The message of each event."""

    def test_revoked(self, mailing: World, receiver: Receiver) -> None:
        """The webhook of a revocation has the reason but not the comment."""
        created = watched(mailing, receiver)
        mailing.revoke(created.api_key.id, reason="REVOKE_REASON_COMPROMISED", comment="found in a public place")
        mailing.turn()
        sent = receiver.next("key.revoked")
        assert json.loads(sent.body) == {
            "type": "key.revoked",
            "timestamp": "2030-01-01T00:00:00Z",
            "data": {"key_id": created.api_key.id, "project_id": "acme", "reason": "compromised"},
        }
        assert sent.headers["content-type"] == "application/json"

    def test_deactivated(self, mailing: World, receiver: Receiver) -> None:
        """A deactivation has a webhook; an activation has none."""
        created = watched(mailing, receiver)
        mailing.set_active(created.api_key.id, active=False)
        mailing.set_active(created.api_key.id, active=True)
        mailing.turn()
        assert receiver.next("key.deactivated").data == {"key_id": created.api_key.id, "project_id": "acme"}
        assert receiver.waiting == 0

    def test_rotated(self, mailing: World, receiver: Receiver) -> None:
        """The webhook of a rotation has the successor's ID and the end of the grace period, but no secret."""
        created = watched(mailing, receiver)
        rotated = mailing.rotate(created.api_key.id)
        mailing.turn()
        sent = receiver.next("key.rotated")
        assert sent.data == {
            "key_id": created.api_key.id,
            "project_id": "acme",
            "replaced_by_key_id": rotated.api_key.id,
            "grace_expire_time": "2030-01-01T01:00:00Z",
        }
        assert rotated.key[-49:] not in sent.body

    def test_due(self, mailing: World, receiver: Receiver) -> None:
        """The webhook of a due rotation has the claim token, and otherwise only the fields of the contract."""
        created = watched(mailing, receiver, rotation={"interval": lasting(DAY), "webhook_url": receiver.url})
        mailing.clock.advance(DAY)
        mailing.turn()
        data = receiver.next("key.rotation_due").data
        assert data.pop("claim_token").startswith("claim_")
        assert data == {"key_id": created.api_key.id, "project_id": "acme", "due_time": "2030-01-02T00:00:00Z"}

    def test_expiring(self, mailing: World, receiver: Receiver) -> None:
        """A coming expiry has two webhooks."""
        watched(mailing, receiver, ttl=lasting(30 * DAY))
        for later in (23 * DAY, 6 * DAY):
            mailing.clock.advance(later)
            mailing.turn()
            assert receiver.next("key.expiring").data["expire_time"] == "2030-01-31T00:00:00Z"

    def test_no_webhook(self, mailing: World) -> None:
        """Keys without a URL have no deliveries."""
        mailing.revoke(mailing.create().api_key.id)
        mailing.turn()
        assert deliveries(mailing) == []

    def test_nothing_of_the_past(self, mailing: World, receiver: Receiver) -> None:
        """Events before a key had a URL have no webhook."""
        created = mailing.create()
        mailing.set_active(created.api_key.id, active=False)
        mailing.turn()
        mailing.set_active(created.api_key.id, active=True)
        mailing.update(created.api_key.id, "rotation", rotation=EVER | {"webhook_url": receiver.url})
        mailing.turn()
        assert deliveries(mailing) == []


class TestSecret:
    """The signing secret."""

    def test_shown_once(self, mailing: World, receiver: Receiver) -> None:
        """The first call that sets a URL in a project returns its secret; later calls do not."""
        first, second = watched(mailing, receiver), watched(mailing, receiver)
        assert first.webhook_secret.startswith("whsec_")
        assert not second.webhook_secret
        mailing.revoke(second.api_key.id)
        mailing.turn()
        assert signed(receiver.next("key.revoked"), first.webhook_secret)

    def test_by_update(self, mailing: World, receiver: Receiver) -> None:
        """Update returns the secret of a new URL, too."""
        key = mailing.create().api_key
        answer = mailing.update(key.id, "rotation", rotation=EVER | {"webhook_url": receiver.url})
        assert answer.webhook_secret.startswith("whsec_")
        assert answer.api_key.rotation.webhook_url == receiver.url

    def test_repeated_create(self, mailing: World, receiver: Receiver) -> None:
        """A replay of Create omits the key and the webhook secret."""
        fields = {"request_id": "123e4567-e89b-42d3-a456-426614174000"}
        assert watched(mailing, receiver, **fields).webhook_secret
        again = watched(mailing, receiver, **fields)
        assert (again.secret_omitted, again.key, again.webhook_secret) == (True, "", "")

    def test_of_a_project(self, mailing: World, receiver: Receiver) -> None:
        """Two projects with one URL have different secrets."""
        one = watched(mailing, receiver)
        other = watched(mailing, receiver, project_id="globex")
        assert len({one.webhook_secret, other.webhook_secret, ""}) == 3
        mailing.revoke(other.api_key.id)
        mailing.turn()
        sent = receiver.next("key.revoked")
        assert (signed(sent, one.webhook_secret), signed(sent, other.webhook_secret)) == (False, True)

    def test_sealed(self, mailing: World, receiver: Receiver) -> None:
        """The database holds the secret only sealed."""
        created = watched(mailing, receiver)
        (row,) = mailing.core.store.select(EndpointRow.select())
        secret = base64.b64decode(created.webhook_secret.removeprefix("whsec_"))
        assert secret not in bytes(row.secret)
        assert len(bytes(row.secret)) == len(secret) + 12 + 16

    def test_replaced(self, mailing: World, receiver: Receiver) -> None:
        """For 24 hours after a rotation, both secrets sign; after that, only the new one does."""
        created = watched(mailing, receiver)
        request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=receiver.url)
        replaced = mailing.call("RotateWebhookSecret", request)
        assert replaced.previous_expire_time == at(mailing.clock.now + DAY)
        mailing.set_active(created.api_key.id, active=False)
        mailing.turn()
        sent = receiver.next("key.deactivated")
        assert (signed(sent, created.webhook_secret), signed(sent, replaced.webhook_secret)) == (True, True)
        mailing.clock.advance(DAY)
        mailing.revoke(created.api_key.id)
        mailing.turn()
        sent = receiver.next("key.revoked")
        assert (signed(sent, created.webhook_secret), signed(sent, replaced.webhook_secret)) == (False, True)

    def test_replaced_is_an_event(self, mailing: World, receiver: Receiver) -> None:
        """The rotation of a secret is an event with actor and URL, and without the secret."""
        watched(mailing, receiver)
        request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=receiver.url)
        replaced = mailing.call("RotateWebhookSecret", request)
        types = ["KEY_EVENT_TYPE_WEBHOOK_SECRET_ROTATED"]
        (event,) = mailing.call("ListEvents", pb.ListEventsRequest(project_id="acme", types=types)).events
        assert (event.key_id, event.project_id, event.actor.name) == ("", "acme", "first operator")
        assert event.detail["webhook_url"] == receiver.url
        assert replaced.webhook_secret.removeprefix("whsec_") not in str(event)
        assert audit.run(mailing.core.store, mailing.clock)

    def test_replaced_again(self, mailing: World, receiver: Receiver) -> None:
        """All secrets of the last 24 hours sign; a fourth rotation within that time is refused."""
        created = watched(mailing, receiver)
        request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=receiver.url)
        secrets = [
            created.webhook_secret,
            *(mailing.call("RotateWebhookSecret", request).webhook_secret for _ in range(3)),
        ]
        refused = mailing.refused("RotateWebhookSecret", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        mailing.set_active(created.api_key.id, active=False)
        mailing.turn()
        sent = receiver.next("key.deactivated")
        assert [signed(sent, secret) for secret in secrets] == [True] * 4
        mailing.clock.advance(DAY)
        assert mailing.call("RotateWebhookSecret", request).webhook_secret

    @pytest.mark.parametrize(("project", "path"), [("acme", "/other"), ("globex", "")])
    def test_replace_unknown(self, mailing: World, receiver: Receiver, project: str, path: str) -> None:
        """RotateWebhookSecret is refused for a URL that the project never had."""
        watched(mailing, receiver)
        request = pb.RotateWebhookSecretRequest(project_id=project, webhook_url=receiver.url + path)
        refused = mailing.refused("RotateWebhookSecret", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "ENDPOINT_NOT_FOUND")

    def test_pepper_rotated(self, mailing: World, receiver: Receiver) -> None:
        """A new pepper reseals the secret within an hour, so that the old pepper can be removed."""
        created = watched(mailing, receiver)
        newest = pepper.rotate(mailing.installation.pepper_file)
        mailing.reopen()
        mailing.turn()
        (row,) = mailing.core.store.select(EndpointRow.select())
        assert row.pepper_id == newest.id
        mailing.revoke(created.api_key.id)
        mailing.turn()
        assert signed(receiver.next("key.revoked"), created.webhook_secret)

    def test_pepper_gone(self, mailing: World, receiver: Receiver) -> None:
        """If the pepper of a secret is missing, nothing is sent, and the delivery says what to do."""
        created = watched(mailing, receiver)
        mailing.installation.pepper_file.unlink()
        pepper.create(mailing.installation.pepper_file)
        mailing.reopen()
        mailing.revoke(created.api_key.id)
        mailing.turn()
        assert (receiver.waiting, state(only(mailing))) == (0, "PENDING")
        assert "replace the webhook secret" in only(mailing).last_error
        mailing.call("RotateWebhookSecret", pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=receiver.url))
        mailing.clock.advance(10 * SECOND)
        mailing.turn()

    def test_no_pepper(self, mailing: World, receiver: Receiver) -> None:
        """A server without a pepper refuses webhook URLs with WEBHOOKS_NEED_PEPPER."""
        mailing.installation.pepper_file.unlink()
        mailing.reopen()
        schedule = EVER | {"webhook_url": receiver.url}
        refused = mailing.refused("Create", pb.CreateRequest(project_id="acme", rotation=schedule))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WEBHOOKS_NEED_PEPPER")
        assert mailing.create(rotation=EVER).key


class TestAttempts:
    """Attempts to send, and their results."""

    def test_delivered(self, mailing: World, receiver: Receiver) -> None:
        """A 2xx status ends the delivery as DELIVERED."""
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        sent = receiver.next("key.revoked")
        delivery = only(mailing)
        assert (delivery.id, delivery.type, state(delivery)) == (sent.headers["webhook-id"], "key.revoked", "DELIVERED")
        assert (delivery.attempts, delivery.last_status_code, delivery.last_error) == (1, 204, "")
        assert not delivery.HasField("next_attempt_time")
        mailing.clock.advance(DAY)
        mailing.turn()
        assert receiver.waiting == 0

    def test_schedule(self, mailing: World, receiver: Receiver) -> None:
        """Retries follow 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 10 h … later, plus up to a tenth, for three days."""
        receiver.status = 500
        mailing.revoke(watched(mailing, receiver).api_key.id)
        began = mailing.clock.now
        ids = set()
        delays = []
        while True:
            mailing.turn()
            ids.add(receiver.next("key.revoked").headers["webhook-id"])
            delivery = only(mailing)
            assert (delivery.last_status_code, delivery.last_error) == (500, "answered 500")
            if state(delivery) != "PENDING":
                break
            next_time = delivery.next_attempt_time.ToMicroseconds()
            delays.append(next_time - mailing.clock.now)
            mailing.clock.now = next_time - 1
            mailing.turn()
            assert receiver.waiting == 0
            mailing.clock.now = next_time
        wanted = [5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR] + [10 * HOUR] * 20
        assert all(least <= delay <= least * 1.1 for least, delay in zip(wanted, delays, strict=False)), delays
        assert len(ids) == 1
        assert state(delivery) == "FAILED"
        assert 2 * DAY < mailing.clock.now - began <= 3 * DAY
        assert delivery.attempts == len(delays) + 1 >= 11

    @pytest.mark.parametrize("status", [300, 301, 302, 307, 308, 400, 401, 404, 429, 500, 503])
    def test_failures(self, mailing: World, receiver: Receiver, status: int) -> None:
        """Every other status is a failure, and redirects are not followed."""
        receiver.status = status
        receiver.headers = {"Location": f"{receiver.url}/elsewhere"}
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        assert receiver.next("key.revoked").path == "/hook"
        assert receiver.waiting == 0
        assert (state(only(mailing)), only(mailing).last_status_code) == ("PENDING", status)

    def test_retry_after(self, mailing: World, receiver: Receiver) -> None:
        """A Retry-After that is longer than the schedule's delay is honoured."""
        receiver.status, receiver.headers = 503, {"Retry-After": "7200"}
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        assert only(mailing).next_attempt_time == at(mailing.clock.now + 2 * HOUR)
        receiver.next("key.revoked")
        mailing.clock.advance(HOUR)
        mailing.turn()
        assert receiver.waiting == 0

    def test_nobody_listens(self, mailing: World, receiver: Receiver) -> None:
        """If the connection is refused, the delivery has an error and stays pending."""
        created = watched(mailing, receiver, rotation=EVER | {"webhook_url": "http://127.0.0.1:1/hook"})
        mailing.revoke(created.api_key.id)
        mailing.turn()
        assert (state(only(mailing)), only(mailing).last_status_code) == ("PENDING", 0)
        assert only(mailing).last_error

    def test_gone(self, mailing: World, receiver: Receiver) -> None:
        """A 410 turns the endpoint off for pending and new deliveries, until its URL is set again."""
        first, second, third = (watched(mailing, receiver) for _ in range(3))
        receiver.status = 410
        mailing.revoke(first.api_key.id)
        mailing.turn()
        mailing.revoke(second.api_key.id)
        mailing.turn()
        assert [state(delivery) for delivery in deliveries(mailing)] == ["ENDPOINT_OFF"] * 2
        assert [delivery.attempts for delivery in deliveries(mailing)] == [0, 1]
        receiver.status = 204
        mailing.update(third.api_key.id, "rotation", rotation=EVER | {"webhook_url": receiver.url})
        mailing.revoke(third.api_key.id)
        mailing.turn()
        assert [state(delivery) for delivery in deliveries(mailing)] == ["DELIVERED", "ENDPOINT_OFF", "ENDPOINT_OFF"]

    def test_one_dead_receiver(self, mailing: World, receiver: Receiver) -> None:
        """A failing receiver is retried with one delivery at a time and does not delay other receivers."""
        dead = EVER | {"webhook_url": "http://127.0.0.1:1/hook"}
        keys = [mailing.create(rotation=dead).api_key.id for _ in range(40)]
        for key_id in keys:
            mailing.revoke(key_id)
        mailing.turn()
        tried = sum(delivery.attempts for delivery in deliveries(mailing, page_size=100))
        assert 1 <= tried <= LANES
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.clock.advance(5 * SECOND)
        mailing.turn()
        assert receiver.next("key.revoked")
        assert sum(delivery.attempts for delivery in deliveries(mailing, page_size=100)) <= tried + 2

    def test_claimed_meanwhile(self, mailing: World, receiver: Receiver) -> None:
        """A void claim token is no longer sent."""
        receiver.status = 500
        schedule = {"interval": lasting(DAY), "webhook_url": receiver.url}
        created = watched(mailing, receiver, rotation=schedule)
        mailing.clock.advance(DAY)
        mailing.turn()
        receiver.next("key.rotation_due")
        mailing.rotate(created.api_key.id)
        mailing.clock.advance(10 * SECOND)
        receiver.status = 204
        mailing.turn()
        mailing.clock.advance(MINUTE)
        mailing.turn()
        assert receiver.next("key.rotated")
        assert receiver.waiting == 0
        assert [state(delivery) for delivery in deliveries(mailing)] == ["DELIVERED", "OUTDATED"]

    def test_clock_set_back(self, mailing: World, receiver: Receiver) -> None:
        """A clock that was a year ahead does not delay a retry by a year."""
        receiver.status = 500
        created = watched(mailing, receiver)
        mailing.clock.advance(365 * DAY)
        mailing.revoke(created.api_key.id)
        mailing.turn()
        receiver.next("key.revoked")
        mailing.clock.advance(-365 * DAY)
        receiver.status = 204
        mailing.turn()
        assert receiver.next("key.revoked")
        assert state(only(mailing)) == "DELIVERED"

    def test_another_server(self, mailing: World, receiver: Receiver) -> None:
        """Another server retries a failed delivery with the same ID and body."""
        receiver.status = 500
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        first = receiver.next("key.revoked")
        receiver.status = 204
        mailing.reopen()
        mailing.clock.advance(10 * SECOND)
        mailing.turn()
        second = receiver.next("key.revoked")
        assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
        assert state(only(mailing)) == "DELIVERED"

    def test_forgotten(self, mailing: World, receiver: Receiver) -> None:
        """Completed deliveries are removed together with their events."""
        created = watched(mailing, receiver)
        mailing.revoke(created.api_key.id)
        mailing.turn()
        mailing.clock.advance(401 * DAY)
        mailing.monotonic.advance(2 * HOUR)
        mailing.create()
        mailing.turn()
        assert deliveries(mailing) == []


class TestShares:
    """One project's receivers do not delay another project's webhooks."""

    @pytest.mark.parametrize(("projects", "urls"), [(1, 200), (10, 200)])
    def test_black_holes(self, mailing: World, receiver: Receiver, projects: int, urls: int) -> None:
        """Another project's webhook arrives before any of many hanging receivers has timed out."""
        endpoints = endpoints_of(mailing, projects * urls)
        with BadReceiver(accept_and_hang) as hole:
            for number in range(projects):
                project_id = f"p{number}"
                key_id = mailing.create(project_id=project_id).api_key.id
                targets = [f"http://127.0.0.1:{hole.port}/{project_id}/{each}" for each in range(urls)]
                pile_up(mailing.core.store, endpoints, project_id, key_id, targets, mailing.clock.now)
            for _ in range(8):  # as many as would occupy all senders
                mailing.scheduler.acting.turn()
            mailing.revoke(watched(mailing, receiver).api_key.id)
            for _ in range(3):
                mailing.scheduler.acting.turn()
            assert receiver.next("key.revoked")
            assert hole.connections > 0
            tried = DeliveryRow.select().where((DeliveryRow.attempts > 0) & (DeliveryRow.project_id != "acme"))
            mailing.scheduler.acting.turn()
            assert mailing.core.store.select(tried) == []


def endpoints_of(world: World, most: int) -> Endpoints:
    """Return the service's maker of endpoints, with a different limit of URLs per project."""
    return Endpoints(pepper.vault(world.installation.peppers()), Judge(TargetRules(), Resolver()), most)


def accept_and_hang(connection: socket.socket, over: threading.Event) -> None:
    """Read everything and never respond."""
    while connection.recv(65_536):
        pass


class TestLimit:
    """The limit of webhook URLs in a project, and how URLs are removed."""

    @pytest.fixture
    def limited(self, mailing: World, receiver: Receiver) -> World:
        """Return a service with a limit of two URLs, and a project that has two."""
        mailing.reopen(max_webhook_urls=2)
        for path in ("/0", "/1"):
            watched(mailing, receiver, rotation=EVER | {"webhook_url": receiver.url + path})
        return mailing

    def later(self, world: World) -> None:
        """Advance the clocks by a day, and take a turn."""
        world.clock.advance(DAY)
        world.monotonic.advance(HOUR)
        world.turn()

    def revoke_all(self, world: World) -> None:
        """Revoke all keys of the project."""
        for key in world.page(project_id="acme").api_keys:
            world.revoke(key.id)
        world.turn()

    def urls(self, world: World) -> list[str]:
        """Return the paths of the project's URLs."""
        rows = world.core.store.select(EndpointRow.select().where(EndpointRow.project_id == "acme"))
        return sorted(row.url[-2:] for row in rows)

    @pytest.mark.parametrize("validate_only", [False, True])
    def test_create(self, limited: World, receiver: Receiver, validate_only: bool) -> None:
        """A URL beyond the limit is refused and no key is made; known URLs and other projects are not affected."""
        keys = len(limited.page().api_keys)
        schedule = EVER | {"webhook_url": receiver.url}
        request = pb.CreateRequest(project_id="acme", rotation=schedule, validate_only=validate_only)
        refused = limited.refused("Create", request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED")
        assert dict(refused.info.metadata) == {"limit": "webhook URLs", "most": "2"}
        assert len(limited.page().api_keys) == keys
        assert watched(limited, receiver, rotation=EVER | {"webhook_url": receiver.url + "/1"}).key
        assert watched(limited, receiver, project_id="globex").webhook_secret

    def test_update(self, limited: World, receiver: Receiver) -> None:
        """Update refuses a URL beyond the limit, too."""
        key = limited.create().api_key
        with pytest.raises(Refused) as caught:
            limited.update(key.id, "rotation", rotation=EVER | {"webhook_url": receiver.url})
        assert caught.value.reason == "LIMIT_REACHED"

    def test_forgotten(self, limited: World, receiver: Receiver) -> None:
        """A URL without keys is removed a day after the server has noticed it, which frees its place."""
        self.revoke_all(limited)
        self.later(limited)
        assert self.urls(limited) == ["/0", "/1"]
        self.later(limited)
        assert self.urls(limited) == []
        assert watched(limited, receiver).webhook_secret

    def test_replaced(self, limited: World) -> None:
        """A rotated key keeps its URL during the grace period."""
        for key in limited.page(project_id="acme").api_keys:
            new = limited.rotate(key.id, grace_period=lasting(4 * DAY)).api_key
            limited.update(new.id, "rotation", rotation=EVER)
        for _ in range(3):
            self.later(limited)
        assert self.urls(limited) == ["/0", "/1"]
        for _ in range(3):
            self.later(limited)
        assert self.urls(limited) == []

    def test_used(self, limited: World, receiver: Receiver) -> None:
        """A URL is kept while a key or a pending delivery uses it."""
        receiver.status = 500
        (first,) = [key for key in limited.page().api_keys if key.rotation.webhook_url.endswith("/0")]
        limited.revoke(first.id)
        limited.turn()
        for _ in range(2):
            self.later(limited)
        assert self.urls(limited) == ["/0", "/1"]
        for _ in range(5):
            self.later(limited)
        assert self.urls(limited) == ["/1"]

    def test_used_again(self, limited: World, receiver: Receiver) -> None:
        """A URL that is set again within the day keeps its secret."""
        self.revoke_all(limited)
        self.later(limited)
        limited.clock.advance(DAY)
        assert not watched(limited, receiver, rotation=EVER | {"webhook_url": receiver.url + "/0"}).webhook_secret
        self.revoke_all(limited)
        self.later(limited)
        assert self.urls(limited) == ["/0"]

    def test_in_turns(self, limited: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every URL is checked, a few in each turn."""
        monkeypatch.setattr(upkeep, "LOOKED_AT", 1)
        self.revoke_all(limited)
        self.later(limited)
        self.later(limited)
        assert self.urls(limited) == []

    def test_redeliver(self, limited: World) -> None:
        """A delivery to a removed URL cannot be sent again."""
        self.revoke_all(limited)
        for _ in range(2):
            self.later(limited)
        refused = limited.refused("Redeliver", pb.RedeliverRequest(delivery_id=deliveries(limited)[0].id))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "ENDPOINT_NOT_FOUND")


class TestRedeliver:
    """Redeliver."""

    def test_failed(self, mailing: World, receiver: Receiver) -> None:
        """A failed delivery is sent again at once, with the same ID, and its attempts keep counting."""
        receiver.status = 500
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        sent = receiver.next("key.revoked")
        receiver.status = 204
        answer = mailing.call("Redeliver", pb.RedeliverRequest(delivery_id=only(mailing).id))
        assert state(answer.delivery) == "PENDING"
        mailing.turn()
        assert receiver.next("key.revoked").headers["webhook-id"] == sent.headers["webhook-id"]
        assert (state(only(mailing)), only(mailing).attempts) == ("DELIVERED", 2)

    def test_delivered(self, mailing: World, receiver: Receiver) -> None:
        """A delivered webhook can be sent again, because receivers lose messages."""
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        receiver.next("key.revoked")
        mailing.call("Redeliver", pb.RedeliverRequest(delivery_id=only(mailing).id))
        mailing.turn()
        assert receiver.next("key.revoked")

    def test_turned_off(self, mailing: World, receiver: Receiver) -> None:
        """Redeliver turns a disabled endpoint on again."""
        receiver.status = 410
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        receiver.status = 204
        mailing.call("Redeliver", pb.RedeliverRequest(delivery_id=only(mailing).id))
        mailing.turn()
        assert state(only(mailing)) == "DELIVERED"

    def test_outdated(self, mailing: World, receiver: Receiver) -> None:
        """A void claim token cannot be sent again."""
        schedule = {"interval": lasting(DAY), "webhook_url": receiver.url}
        created = watched(mailing, receiver, rotation=schedule)
        mailing.clock.advance(DAY)
        mailing.turn()
        delivery_id = only(mailing).id
        mailing.revoke(created.api_key.id)
        refused = mailing.refused("Redeliver", pb.RedeliverRequest(delivery_id=delivery_id))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_OUTDATED")

    @pytest.mark.parametrize(("delivery_id", "reason"), [("msg_0", "DELIVERY_NOT_FOUND"), ("", "INVALID_FIELD")])
    def test_unknown(self, mailing: World, delivery_id: str, reason: str) -> None:
        """An unknown delivery ID is refused."""
        assert mailing.refused("Redeliver", pb.RedeliverRequest(delivery_id=delivery_id)).reason == reason


class TestCallers:
    """Permissions."""

    def test_other_projects(self, mailing: World, receiver: Receiver) -> None:
        """The deliveries and endpoints of another project do not exist for a caller."""
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        delivery_id = only(mailing).id
        theirs = mailing.caller("tumbler:*", project_id="globex")
        assert not mailing.call("ListDeliveries", pb.ListDeliveriesRequest(), theirs).deliveries
        refused = mailing.refused("ListDeliveries", pb.ListDeliveriesRequest(project_id="acme"), theirs)
        assert refused.reason == "OTHER_PROJECT"
        again = mailing.refused("Redeliver", pb.RedeliverRequest(delivery_id=delivery_id), theirs)
        assert (again.code, again.reason) == (grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND")
        request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=receiver.url)
        assert mailing.refused("RotateWebhookSecret", request, theirs).reason == "OTHER_PROJECT"

    @pytest.mark.parametrize(
        ("method", "request_", "scope"),
        [
            ("ListDeliveries", pb.ListDeliveriesRequest(), "tumbler:events:read"),
            ("Redeliver", pb.RedeliverRequest(delivery_id="msg_0"), "tumbler:keys:update"),
            ("RotateWebhookSecret", pb.RotateWebhookSecretRequest(webhook_url="https://a.test"), "tumbler:keys:update"),
        ],
    )
    def test_scopes(self, mailing: World, method: str, request_: object, scope: str) -> None:
        """Each method needs its scope."""
        without = mailing.caller("tumbler:keys:verify")
        refused = mailing.refused(method, request_, without)
        assert (refused.reason, dict(refused.info.metadata)) == ("SCOPE_MISSING", {"scope": scope})

    def test_update_alone(self, mailing: World, receiver: Receiver) -> None:
        """A caller without the scope to rotate a key cannot set a new webhook URL, but may keep the old one."""
        updater = mailing.caller("tumbler:keys:update")
        bare, told = mailing.create().api_key, watched(mailing, receiver).api_key
        with pytest.raises(Refused) as caught:
            mailing.update(bare.id, "rotation", rotation=EVER | {"webhook_url": receiver.url}, key=updater)
        assert dict(caught.value.info.metadata) == {"scope": "tumbler:keys:rotate"}
        shorter = {"interval": lasting(DAY), "webhook_url": receiver.url}
        assert mailing.update(told.id, "rotation", rotation=shorter, key=updater).api_key.rotation.interval == lasting(
            DAY
        )

    def test_no_escalation(self, mailing: World, receiver: Receiver) -> None:
        """To set a key's webhook URL, a caller must hold the key's `tumbler:…` scopes."""
        strong = mailing.create(scopes=["tumbler:events:read"]).api_key
        weak = mailing.caller("tumbler:keys:update", "tumbler:keys:rotate")
        with pytest.raises(Refused) as caught:
            mailing.update(strong.id, "rotation", rotation=EVER | {"webhook_url": receiver.url}, key=weak)
        assert caught.value.reason == "SCOPE_ESCALATION"

    def test_pages(self, mailing: World, receiver: Receiver) -> None:
        """Pages continue where the last one ended, newest first, and are bound to their filter."""
        created = [watched(mailing, receiver).api_key.id for _ in range(5)]
        for key_id in created:
            mailing.revoke(key_id)
        mailing.turn()
        found, token = [], ""
        while True:
            page = mailing.call("ListDeliveries", pb.ListDeliveriesRequest(page_size=2, page_token=token))
            found += [delivery.key_id for delivery in page.deliveries]
            token = page.next_page_token
            if not token:
                break
        assert found == created[::-1]
        first = mailing.call("ListDeliveries", pb.ListDeliveriesRequest(page_size=2)).next_page_token
        other = pb.ListDeliveriesRequest(key_id=created[0], page_token=first)
        assert mailing.refused("ListDeliveries", other).fields == ["page_token"]

    def test_filters(self, mailing: World, receiver: Receiver) -> None:
        """Deliveries can be filtered by project, key and state."""
        one, other = watched(mailing, receiver), watched(mailing, receiver, project_id="globex")
        for created in (one, other):
            mailing.revoke(created.api_key.id)
        mailing.turn()
        assert [each.project_id for each in deliveries(mailing, project_id="globex")] == ["globex"]
        assert [each.key_id for each in deliveries(mailing, key_id=one.api_key.id)] == [one.api_key.id]
        assert len(deliveries(mailing, states=["DELIVERY_STATE_DELIVERED", "DELIVERY_STATE_FAILED"])) == 2
        assert deliveries(mailing, states=["DELIVERY_STATE_PENDING"]) == []
        assert mailing.refused("ListDeliveries", pb.ListDeliveriesRequest(states=[0])).fields == ["states[0]"]


class TestDoctor:
    """What `tumbler-server doctor` reports about webhooks."""

    def finding(self, world: World) -> tuple[str, str]:
        """Return the severity and the remedy."""
        (finding,) = [each for each in doctor.examine(world.installation) if each.subject == "webhooks"]
        return finding.severity, finding.mend

    def test_in_order(self, mailing: World, receiver: Receiver) -> None:
        """If nothing is wrong, the finding is ok and has no remedy."""
        assert self.finding(mailing) == ("ok", "")
        watched(mailing, receiver)
        assert self.finding(mailing) == ("ok", "")

    def test_off(self, mailing: World, receiver: Receiver) -> None:
        """An endpoint that is off is a warning."""
        receiver.status = 410
        mailing.revoke(watched(mailing, receiver).api_key.id)
        mailing.turn()
        severity, mend = self.finding(mailing)
        assert severity == "warning"
        assert "redeliver" in mend

    def test_pepper_gone(self, mailing: World, receiver: Receiver) -> None:
        """A secret that cannot be opened is reported as wrong."""
        watched(mailing, receiver)
        mailing.installation.pepper_file.unlink()
        pepper.create(mailing.installation.pepper_file)
        severity, mend = self.finding(mailing)
        assert severity == "wrong"
        assert "rotate-secret" in mend


class TestUrls:
    """Allowed URLs; tests/faults has the hostile ones."""

    @pytest.mark.parametrize(
        "url",
        [
            "http://hooks.example.com/",
            "https://10.0.0.1/",
            "https://[fe80::1]/",
            "https://169.254.169.254/latest",
            "https://user@hooks.example.com/",
            "ftp://hooks.example.com/",
            "https://2130706433/",
            "hooks.acme.test/in",
            "https://hooks.example.com/" + "a" * 2_048,
        ],
    )
    def test_refused(self, world: World, url: str) -> None:
        """A forbidden URL is refused with its field and is not quoted."""
        request = pb.CreateRequest(project_id="acme", rotation=EVER | {"webhook_url": url})
        refused = world.refused("Create", request)
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["rotation.webhook_url"])
        assert url not in str(refused)
        key = world.create().api_key
        with pytest.raises(Refused) as caught:
            world.update(key.id, "rotation", rotation=EVER | {"webhook_url": url})
        assert caught.value.fields == ["api_key.rotation.webhook_url"]

    def test_loopback(self, world: World) -> None:
        """A loopback URL is refused unless the operator allows it."""
        rotation = EVER | {"webhook_url": "http://127.0.0.1:8000/"}
        assert world.refused("Create", pb.CreateRequest(project_id="acme", rotation=rotation)).fields

    def test_unknown_name(self, world: World) -> None:
        """A host name without an address is accepted, because it may have one later."""
        assert world.create(rotation=EVER | {"webhook_url": "https://hooks.example.com/in"}).webhook_secret

    def test_validate_only(self, world: World) -> None:
        """A Create with validate_only makes no endpoint."""
        created = world.create(rotation=EVER | {"webhook_url": "https://hooks.example.com/in"}, validate_only=True)
        assert not created.webhook_secret
        assert created.api_key.rotation.webhook_url == "https://hooks.example.com/in"
        assert world.core.store.select(EndpointRow.select()) == []
