"""Webhook URLs as keys get them: what is checked before a name is looked up, and how many there may be of what."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.domain import OPERATOR, Domain
from tests.harness import FrozenClock
from tumbler_server import errors
from tumbler_server.clock import HOUR, MINUTE
from tumbler_server.events.lease import Lease
from tumbler_server.keys.deliveries import Deliveries
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.record import Key
from tumbler_server.keys.requests import RequestId
from tumbler_server.keys.tokens import open_tokens
from tumbler_server.store.database import Store
from tumbler_server.store.models import ApiKeyRow, DeliveryRow, EndpointRow, EventRow
from tumbler_server.webhooks.deliveries import State
from tumbler_server.webhooks.outbox import Outbox

URL = "https://hooks.example.com/in"
DRAFT = Draft(project_id="acme", webhook_url=URL)

CALLER = Key(id="", project_id="acme", name="a caller", scopes=("tumbler:keys:create", "tumbler:keys:update"))
"""Who may create and update, and nothing else."""


def request(body: bytes) -> RequestId:
    """Return an id that is the same for all bodies."""
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
    """Give the domain on each database, whose projects may have two URLs; one has."""
    domain = Domain(store, clock, max_webhook_urls=2)
    for number in range(2):
        domain.create(project_id="full", webhook_url=f"https://8.8.8.8/{number}")
    yield domain
    domain.close()


def edit(domain: Domain, key_id: str = "", **given: Any) -> Edit:
    """Return the edit that sets the URL, of a new key unless another is named, but for what is given."""
    if key_id in ("", "full"):
        key_id = domain.create(project_id=key_id or "acme").key.id
    return Edit(**{"key_id": key_id, "draft": Draft(project_id="", webhook_url=URL), "fields": ("rotation",), **given})


class TestOrder:
    """A name is looked up after everything else, since that takes long."""

    @pytest.mark.parametrize("what", REFUSED_CREATES)
    def test_create(self, domain: Domain, what: str) -> None:
        """Whatever else refuses a Create does so before."""
        caller, given, error = REFUSED_CREATES[what]
        domain.create(request_id=request(b"body"))
        with pytest.raises(error):
            domain.lifecycle.create(caller, dataclasses.replace(DRAFT, **given))
        assert domain.looked_up == []

    def test_repeated(self, domain: Domain) -> None:
        """A repeated Create has looked it up before, and does not again."""
        for _ in range(2):
            domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, request_id=request(b"body")))
            assert domain.looked_up == ["hooks.example.com"]
            domain.uptime.advance(HOUR)

    @pytest.mark.parametrize("validate_only", [False, True])
    def test_created(self, domain: Domain, validate_only: bool) -> None:
        """A Create that nothing refuses looks it up, once, and holds up no writer; so does one that is validated."""
        domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, validate_only=validate_only))
        assert domain.looked_up == ["hooks.example.com"]

    @pytest.mark.parametrize("what", REFUSED_UPDATES)
    def test_update(self, domain: Domain, what: str) -> None:
        """Whatever else refuses an Update does so before."""
        caller, given, error = REFUSED_UPDATES[what]
        with pytest.raises(error):
            domain.lifecycle.update(caller, edit(domain, **given))
        assert domain.looked_up == []

    def test_update_revoked(self, domain: Domain) -> None:
        """So does the end of a key."""
        key_id = domain.create().key.id
        domain.revoke(key_id)
        with pytest.raises(errors.KeyIsRevoked):
            domain.lifecycle.update(OPERATOR, edit(domain, key_id))
        assert domain.looked_up == []

    def test_updated(self, domain: Domain) -> None:
        """An Update looks up a URL that the key does not have, and holds up no writer; nothing for one that it has."""
        changing = edit(domain)
        for _ in range(2):
            domain.lifecycle.update(OPERATOR, changing)
            assert domain.looked_up == ["hooks.example.com"]
            domain.uptime.advance(HOUR)


class TestSlowNames:
    """A look-up takes as long as a name server likes; what is changed is dated by when it is changed."""

    @pytest.fixture(autouse=True)
    def slow(self, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a minute go by while a name is looked up, in which somebody else makes a key."""

        def look_up(*_: object) -> str:
            domain.clock.advance(MINUTE)
            domain.create(name="meanwhile")
            return ""

        monkeypatch.setattr(domain.endpoints.judge, "look_up", look_up)

    def test_created(self, domain: Domain) -> None:
        """A key is made, and begins to live, when it is written: time does not go backwards along the log."""
        issued = domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, ttl=HOUR))
        assert (issued.key.create_time, issued.key.expire_time) == (domain.clock.now, domain.clock.now + HOUR)
        times = [row.time for row in domain.store.select(EventRow.select().order_by(EventRow.revision))]
        assert times == sorted(times)

    def test_updated(self, domain: Domain) -> None:
        """So is a change."""
        changed = domain.lifecycle.update(OPERATOR, edit(domain))
        assert changed.key.update_time == domain.clock.now
        times = [row.time for row in domain.store.select(EventRow.select().order_by(EventRow.revision))]
        assert times == sorted(times)

    def test_an_expiry_that_has_passed_meanwhile(self, domain: Domain) -> None:
        """No key is made that has expired, nor is one given an expiry that has passed."""
        soon = domain.clock.now + MINUTE
        with pytest.raises(errors.InvalidFields):
            domain.lifecycle.create(OPERATOR, dataclasses.replace(DRAFT, expire_time=soon))
        changing = edit(domain, draft=Draft(project_id="", webhook_url=URL, expire_time=domain.clock.now + MINUTE))
        with pytest.raises(errors.InvalidFields):
            domain.lifecycle.update(OPERATOR, dataclasses.replace(changing, fields=("rotation", "expire_time")))


class TestUrls:
    """How many a project may have."""

    def test_meanwhile(self, domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        """It counts what there is when it is written: nobody comes in between, and nothing is made."""
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
    """How many deliveries of a project may wait."""

    @pytest.fixture
    def outbox(self, domain: Domain) -> Callable[[], None]:
        """Give what takes up the whole log, where three deliveries of a project may wait."""
        outbox = Outbox(domain.store, domain.clock, most_pending=3)
        lease = Lease(domain.store, "test", uptime=FrozenClock(0))
        lease.keep()
        return lambda: outbox.work(lease)

    def waiting(self, domain: Domain, project_id: str = "acme") -> list[tuple[str, State]]:
        """Return the reasons that a project's keys were revoked for, and what has become of telling that."""
        query = DeliveryRow.select().where(DeliveryRow.project_id == project_id).order_by(DeliveryRow.revision)
        rows = domain.store.select(query)
        return [(json.loads(row.detail)["comment"], State(row.state)) for row in rows]

    def revoke(self, domain: Domain, *comments: str, project_id: str = "acme") -> None:
        """Have keys end, whose URL is told."""
        for comment in comments:
            key = domain.create(project_id=project_id, webhook_url="https://8.8.8.8/0").key
            domain.lifecycle.revoke(OPERATOR, key.id, 0, comment)

    def test_oldest(self, domain: Domain, outbox: Callable[[], None]) -> None:
        """Beyond the limit the oldest are given up, and said to be; another project's are not."""
        self.revoke(domain, "z", project_id="globex")
        self.revoke(domain, "a", "b")
        outbox()
        self.revoke(domain, "c", "d", "e")
        outbox()
        outbox()
        given_up, left = State.FAILED, State.PENDING
        assert self.waiting(domain) == [("a", given_up), ("b", given_up), ("c", left), ("d", left), ("e", left)]
        assert self.waiting(domain, "globex") == [("z", left)]
        (error,) = {row.last_error for row in domain.store.select(DeliveryRow.select()) if row.state == given_up}
        assert error.startswith("given up: ")
        self.revoke(domain, "f")
        outbox()
        assert self.waiting(domain)[2:] == [("c", given_up), ("d", left), ("e", left), ("f", left)]

    def test_pause(self, domain: Domain, outbox: Callable[[], None]) -> None:
        """An endpoint that is left alone for a while is not asked sooner because something was given up."""
        self.revoke(domain, "a", "b", "c")
        outbox()
        later = domain.clock.now + HOUR
        domain.store.write(lambda transaction: transaction.run(EndpointRow.update(next_attempt_time=later, failures=1)))
        self.revoke(domain, "d")
        outbox()
        (row,) = domain.store.select(EndpointRow.select().where(EndpointRow.project_id == "acme"))
        assert row.next_attempt_time == later

    def test_redeliver(self, domain: Domain, outbox: Callable[[], None]) -> None:
        """Nothing is sent again by hand while so many wait."""
        deliveries = Deliveries(domain.store, open_tokens(domain.store), domain.endpoints, domain.clock, most_pending=3)
        self.revoke(domain, "a", "b", "c", "d")
        outbox()
        (given_up,) = domain.store.select(DeliveryRow.select().where(DeliveryRow.state == int(State.FAILED)))
        with pytest.raises(errors.LimitReached):
            deliveries.redeliver(OPERATOR, given_up.id)
        domain.store.write(
            lambda transaction: transaction.run(
                DeliveryRow.delete().where(DeliveryRow.revision == given_up.revision + 2)
            )
        )
        assert deliveries.redeliver(OPERATOR, given_up.id).state == int(State.PENDING)
