"""Webhook URLs of keys: what is checked before DNS, and the maximum numbers."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.domain import OPERATOR, Domain
from tests.harness import FrozenClock
from tumbler_server import errors
from tumbler_server.clock import HOUR, MINUTE
from tumbler_server.keys.idempotency import RequestId
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.record import Key
from tumbler_server.keys.webhook_admin import WebhookAdmin
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens
from tumbler_server.store.database import Store
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import ApiKeyRow, DeliveryRow, EndpointRow, EventRow
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.outbox import Outbox

URL = "https://hooks.example.com/in"
DRAFT = Draft(project_id="acme", webhook_url=URL)

CALLER = Key(id="", project_id="acme", name="a caller", scopes=("tumbler:keys:create", "tumbler:keys:update"))
"""A caller that may only create and update."""


def request(body: bytes) -> RequestId:
    """Return a request id that is the same for all bodies."""
    return RequestId("123e4567-e89b-42d3-a456-426614174000", body)


REFUSED_CREATES: dict[str, tuple[Key, dict[str, Any], type[Exception]]] = {
    "form": (OPERATOR, {"name": "a"}, errors.InvalidFields),
    "the URL's own form": (OPERATOR, {"webhook_url": "http://hooks.example.com/"}, errors.InvalidFields),
    "time": (OPERATOR, {"expire_time": 1}, errors.InvalidFields),
    "access": (CALLER, {"project_id": "globex"}, errors.OtherProject),
    "escalation": (CALLER, {"scopes": ("tumbler:events:read",)}, errors.ScopeEscalation),
    "idempotency": (OPERATOR, {"request_id": request(b"other")}, errors.RequestIdReused),
    "quota": (OPERATOR, {"project_id": "full"}, errors.LimitReached),
}

REFUSED_UPDATES: dict[str, tuple[Key, dict[str, Any], type[Exception]]] = {
    "form": (OPERATOR, {"fields": ("rotation", "nothing")}, errors.InvalidFields),
    "key": (OPERATOR, {"key_id": "0" * 16}, errors.KeyNotFound),
    "etag": (OPERATOR, {"etag": "stale"}, errors.EtagMismatch),
    "permission": (CALLER, {}, errors.ScopeMissing),
    "quota": (OPERATOR, {"key_id": "full"}, errors.LimitReached),
}


@pytest.fixture
def domain(store: Store, clock: FrozenClock) -> Iterator[Domain]:
    """Yield the domain on each kind of database, with at most two URLs per project; project "full" has two."""
    domain = Domain(store, clock, max_webhook_urls=2)
    for number in range(2):
        domain.create(project_id="full", webhook_url=f"https://8.8.8.8/{number}")
    yield domain
    domain.close()


def edit(domain: Domain, key_id: str = "", **given: Any) -> Edit:
    """Return an edit that sets the URL, of a new key by default, with the given changes."""
    if key_id in ("", "full"):
        key_id = domain.create(project_id=key_id or "acme").key.id
    return Edit(**{"key_id": key_id, "draft": Draft(project_id="", webhook_url=URL), "fields": ("rotation",), **given})


class TestOrder:
    """A name is looked up after all other checks, because DNS can be slow."""

    @pytest.mark.parametrize("what", REFUSED_CREATES)
    def test_create(self, domain: Domain, what: str) -> None:
        """Everything else that can refuse a Create does so before the lookup."""
        caller, given, error = REFUSED_CREATES[what]
        domain.create(request_id=request(b"body"))
        with pytest.raises(error):
            domain.lifecycle.create(caller, dataclasses.replace(DRAFT, **given))
        assert domain.looked_up == []

    def test_repeated(self, domain: Domain) -> None:
        """A replayed Create does not look up the name again."""
        for _ in range(2):
            domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, request_id=request(b"body")))
            assert domain.looked_up == ["hooks.example.com"]
            domain.monotonic.advance(HOUR)

    @pytest.mark.parametrize("validate_only", [False, True])
    def test_created(self, domain: Domain, validate_only: bool) -> None:
        """A Create that passes looks the name up once, without the write lock, and so does one with validate_only."""
        domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, validate_only=validate_only))
        assert domain.looked_up == ["hooks.example.com"]

    @pytest.mark.parametrize("what", REFUSED_UPDATES)
    def test_update(self, domain: Domain, what: str) -> None:
        """Everything else that can refuse an Update does so before the lookup."""
        caller, given, error = REFUSED_UPDATES[what]
        with pytest.raises(error):
            domain.lifecycle.update(caller, edit(domain, **given))
        assert domain.looked_up == []

    def test_update_revoked(self, domain: Domain) -> None:
        """An Update of a revoked key is refused before the lookup."""
        key_id = domain.create().key.id
        domain.revoke(key_id)
        with pytest.raises(errors.KeyIsRevoked):
            domain.lifecycle.update(OPERATOR, edit(domain, key_id))
        assert domain.looked_up == []

    def test_updated(self, domain: Domain) -> None:
        """An Update looks up a new URL, without the write lock, and not one that the key already has."""
        changing = edit(domain)
        for _ in range(2):
            domain.lifecycle.update(OPERATOR, changing)
            assert domain.looked_up == ["hooks.example.com"]
            domain.monotonic.advance(HOUR)


class TestSlowNames:
    """However long a lookup takes, a change is dated by its write."""

    @pytest.fixture(autouse=True)
    def slow(self, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let each lookup take a minute, in which another key is created."""

        def look_up(*_: object) -> str:
            domain.clock.advance(MINUTE)
            domain.create(name="meanwhile")
            return ""

        monkeypatch.setattr(domain.endpoints.judge, "look_up", look_up)

    def test_created(self, domain: Domain) -> None:
        """A key's life begins when it is written, so times do not decrease along the log."""
        issued = domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, ttl=HOUR))
        assert (issued.key.create_time, issued.key.expire_time) == (domain.clock.now, domain.clock.now + HOUR)
        times = [row.time for row in domain.store.select(EventRow.select().order_by(EventRow.revision))]
        assert times == sorted(times)

    def test_updated(self, domain: Domain) -> None:
        """An Update is dated by its write, so times do not decrease along the log."""
        changed = domain.lifecycle.update(OPERATOR, edit(domain))
        assert changed.key.update_time == domain.clock.now
        times = [row.time for row in domain.store.select(EventRow.select().order_by(EventRow.revision))]
        assert times == sorted(times)

    def test_an_expiry_that_has_passed_meanwhile(self, domain: Domain) -> None:
        """An expire_time that passes during the lookup is refused, in Create and in Update."""
        soon = domain.clock.now + MINUTE
        with pytest.raises(errors.InvalidFields):
            domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, expire_time=soon))
        changing = edit(domain, draft=Draft(project_id="", webhook_url=URL, expire_time=domain.clock.now + MINUTE))
        with pytest.raises(errors.InvalidFields):
            domain.lifecycle.update(OPERATOR, dataclasses.replace(changing, fields=("rotation", "expire_time")))


class TestUrls:
    """How many URLs a project may have."""

    def test_meanwhile(self, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        """The limit is checked in the transaction: a URL added during the lookup counts, and nothing is created."""
        domain.create(webhook_url="https://8.8.8.8/0")
        judge = domain.endpoints.judge
        made = []

        def look_up(url: str, project_id: str) -> str:
            monkeypatch.undo()
            made.append(domain.create(webhook_url="https://8.8.8.8/1"))
            return ""

        monkeypatch.setattr(judge, "look_up", look_up)
        before = len(domain.store.select(ApiKeyRow.select()))
        with pytest.raises(errors.LimitReached) as refused:
            domain.create(webhook_url="https://8.8.8.8/2")
        assert refused.value.detail == {"limit": "webhook URLs", "most": "2"}
        assert len(made) == len(domain.store.select(ApiKeyRow.select())) - before == 1


class TestPending:
    """How many deliveries of a project may be pending."""

    @pytest.fixture
    def outbox(self, domain: Domain) -> Callable[[], None]:
        """Return a function that processes the whole log, with at most three pending deliveries per project."""
        outbox = Outbox(domain.store, domain.clock, most_pending=3)
        lease = Lease(domain.store, "test", monotonic=FrozenClock(0))
        lease.keep()
        return lambda: outbox.work(lease)

    def waiting(self, domain: Domain, project_id: str = "acme") -> list[tuple[str, DeliveryState]]:
        """Return each delivery's revoke comment and its state, for one project."""
        query = DeliveryRow.select().where(DeliveryRow.project_id == project_id).order_by(DeliveryRow.revision)
        rows = domain.store.select(query)
        return [(json.loads(row.detail)["comment"], DeliveryState(row.state)) for row in rows]

    def revoke(self, domain: Domain, *comments: str, project_id: str = "acme") -> None:
        """Create and revoke keys with a URL, one for each comment."""
        for comment in comments:
            key = domain.create(project_id=project_id, webhook_url="https://8.8.8.8/0").key
            domain.lifecycle.revoke(OPERATOR, key.id, 0, comment)

    def test_oldest(self, domain: Domain, outbox: Callable[[], None]) -> None:
        """Above the limit the oldest deliveries fail with an error that says so; another project's do not."""
        self.revoke(domain, "z", project_id="globex")
        self.revoke(domain, "a", "b")
        outbox()
        self.revoke(domain, "c", "d", "e")
        outbox()
        outbox()
        given_up, left = DeliveryState.FAILED, DeliveryState.PENDING
        assert self.waiting(domain) == [("a", given_up), ("b", given_up), ("c", left), ("d", left), ("e", left)]
        assert self.waiting(domain, "globex") == [("z", left)]
        (error,) = {row.last_error for row in domain.store.select(DeliveryRow.select()) if row.state == given_up}
        assert error.startswith("given up: ")
        self.revoke(domain, "f")
        outbox()
        assert self.waiting(domain)[2:] == [("c", given_up), ("d", left), ("e", left), ("f", left)]

    def test_pause(self, domain: Domain, outbox: Callable[[], None]) -> None:
        """An endpoint's pause is not shortened because deliveries were given up."""
        self.revoke(domain, "a", "b", "c")
        outbox()
        later = domain.clock.now + HOUR
        domain.store.write_serialized(
            lambda transaction: transaction.run(EndpointRow.update(next_attempt_time=later, failures=1))
        )
        self.revoke(domain, "d")
        outbox()
        (row,) = domain.store.select(EndpointRow.select().where(EndpointRow.project_id == "acme"))
        assert row.next_attempt_time == later

    def test_redeliver(self, domain: Domain, outbox: Callable[[], None]) -> None:
        """Redeliver is refused while the maximum is pending."""
        deliveries = WebhookAdmin(
            domain.store,
            open_opaque_tokens(domain.store, domain.tail.lineage.mark),
            domain.endpoints,
            domain.clock,
            most_pending=3,
        )
        self.revoke(domain, "a", "b", "c", "d")
        outbox()
        (given_up,) = domain.store.select(DeliveryRow.select().where(DeliveryRow.state == int(DeliveryState.FAILED)))
        with pytest.raises(errors.LimitReached):
            deliveries.redeliver(OPERATOR, given_up.id)
        domain.store.write_serialized(
            lambda transaction: transaction.run(
                DeliveryRow.delete().where(DeliveryRow.revision == given_up.revision + 2)
            )
        )
        assert deliveries.redeliver(OPERATOR, given_up.id).state == int(DeliveryState.PENDING)
