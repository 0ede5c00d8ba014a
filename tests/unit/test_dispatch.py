"""Which webhooks are sent first, and how many at a time for each project."""

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.domain import Domain
from tests.harness import FrozenClock
from tests.webhooks.backlog import pile_up
from tumbler_server.audit import audit
from tumbler_server.clock import MINUTE
from tumbler_server.store.database import Store
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import DeliveryRow
from tumbler_server.webhooks import dispatch
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.dispatch import LANES, SENDERS, Dispatch
from tumbler_server.webhooks.post import HttpResponse

PATIENCE = 30.0
"""How long a test waits before it fails, in seconds."""


class Mail:
    """A dispatch whose posts are recorded, not sent. URLs are ``https://<project>/<endpoint>``."""

    def __init__(self, domain: Domain, senders: int = SENDERS) -> None:
        self.status = 204
        self.held: set[str] = set()
        """Projects whose posts block until ``let_go``."""
        self.posted: queue.Queue[str] = queue.Queue()
        self.clock = domain.clock
        self._domain = domain
        self._over = threading.Event()
        self._lease = Lease(domain.store, "test", monotonic=FrozenClock(0))
        self._lease.keep()
        self._dispatch = Dispatch(
            domain.store, domain.endpoints, self._post, domain.claim_tokens.token, domain.clock, domain.clock, senders
        )

    def _post(self, url: str, _: bytes, __: Mapping[str, str], project_id: str) -> HttpResponse:
        assert urlsplit(url).hostname == project_id
        self.posted.put(url)
        if project_id in self.held:
            self._over.wait(PATIENCE)
        return HttpResponse(self.status, None)

    def pile_up(self, project_id: str, endpoints: int = 1, each: int = 1, failures: int = 0, path: str = "") -> None:
        """Insert pending deliveries for this number of a project's endpoints."""
        key_id = self._domain.create(project_id=project_id).key.id
        urls = [f"https://{project_id}/{path}{number}" for number in range(endpoints)]
        pile_up(
            self._domain.store, self._domain.endpoints, project_id, key_id, urls, self._domain.clock(), each, failures
        )

    def begin(self) -> None:
        """Run one turn, without waiting for its posts."""
        self._dispatch.work(self._lease)

    def turn(self) -> list[str]:
        """Run one turn, wait for its posts to end, and return their URLs."""
        self.begin()
        self._dispatch.drain()
        return [self.posted.get_nowait() for _ in range(self.posted.qsize())]

    def let_go(self) -> None:
        """Release all posts."""
        self._over.set()
        self._dispatch.close()


@pytest.fixture
def mail(domain: Domain) -> Iterator[Mail]:
    """Yield a dispatch with the server's number of senders."""
    mail = Mail(domain)
    yield mail
    mail.let_go()


def projects(urls: list[str]) -> Counter[str | None]:
    """Count URLs by project."""
    return Counter(urlsplit(url).hostname for url in urls)


class TestShares:
    """The number of senders for each project."""

    def test_alone(self, mail: Mail) -> None:
        """A single project gets a quarter of the senders, whatever is pending."""
        mail.pile_up("acme", 40, each=2)
        assert projects(mail.turn()) == {"acme": SENDERS // 4}

    def test_several(self, mail: Mail) -> None:
        """Ten projects get equal numbers of senders, up to one, and leave some free."""
        for number in range(10):
            mail.pile_up(f"p{number}", 20)
        sent = projects(mail.turn())
        assert sorted({*sent.values()}) in ([4], [5], [4, 5])
        assert sent.total() < SENDERS - 4

    @pytest.mark.parametrize("hostile", [1, 10])
    def test_free_for_others(self, mail: Mail, hostile: int) -> None:
        """While other projects' posts hang, a delivery of a project with none in flight is sent in the next turn."""
        for number in range(hostile):
            mail.pile_up(f"p{number}", 100)
            mail.held.add(f"p{number}")
        for _ in range(8):  # as many as would fill all senders
            mail.begin()
        mail.pile_up("acme", 2)
        mail.begin()
        waited_for = {"https://acme/0", "https://acme/1"}
        while waited_for:
            waited_for.discard(mail.posted.get(timeout=PATIENCE))

    def test_turns(self, domain: Domain) -> None:
        """If there are more projects than senders, each gets a turn before any gets a second."""
        few = Mail(domain, senders=4)
        for number in range(8):
            few.pile_up(f"p{number}", 3)
        first, second, third = few.turn(), few.turn(), few.turn()
        assert projects(first + second) == {f"p{number}": 1 for number in range(8)}
        assert projects(third) == projects(first)
        few.let_go()

    def test_many_projects(self, mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
        """A turn serves at most MOST_PROJECTS projects, and the next turn continues with the following ones."""
        monkeypatch.setattr(dispatch, "MOST_PROJECTS", 2)
        for number in range(5):
            mail.pile_up(f"p{number}", 1, each=9)
        assert [set(projects(mail.turn())) for _ in range(3)] == [{"p0", "p1"}, {"p2", "p3"}, {"p4", "p0"}]


class TestDoubtful:
    """Endpoints whose last attempt failed or was slow."""

    def test_behind(self, mail: Mail) -> None:
        """A project's failing endpoints come after all its others."""
        mail.pile_up("acme", 40, failures=1, path="failing")
        mail.pile_up("acme", SENDERS // 4, path="fresh")
        assert all("fresh" in url for url in mail.turn())
        assert all("failing" in url for url in mail.turn())

    @pytest.mark.parametrize(("failures", "sent"), [(0, LANES), (1, 1)])
    def test_lanes(self, mail: Mail, failures: int, sent: int) -> None:
        """A failing endpoint gets one delivery at a time; another gets several."""
        mail.pile_up("acme", 1, each=20, failures=failures)
        assert len(mail.turn()) == sent

    def test_slow(self, mail: Mail, monkeypatch: pytest.MonkeyPatch) -> None:
        """A slow endpoint gets one delivery at a time, until it is fast again."""
        monkeypatch.setattr(dispatch, "SLOW", -1.0)
        mail.pile_up("acme", 1, each=30)
        assert [len(mail.turn()), len(mail.turn())] == [LANES, 1]
        monkeypatch.setattr(dispatch, "SLOW", PATIENCE)
        assert [len(mail.turn()), len(mail.turn())] == [1, LANES]

    @pytest.mark.parametrize("kind", ["failing", "slow"])
    def test_half(self, mail: Mail, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
        """Failing or slow endpoints get at most half of the senders, however many projects have them."""
        monkeypatch.setattr(dispatch, "SLOW", -1.0)
        for number in range(SENDERS):
            mail.pile_up(f"p{number}", 1, each=3, failures=int(kind == "failing"))
        if kind == "slow":
            assert len(mail.turn()) == SENDERS
        assert len(mail.turn()) == SENDERS // 2

    def test_again(self, mail: Mail) -> None:
        """Each failing endpoint is tried again, however many there are."""
        mail.status = 500
        mail.pile_up("acme", 40)
        first = [url for _ in range(3) for url in mail.turn()]
        mail.clock.advance(MINUTE)
        again = [url for _ in range(3) for url in mail.turn()]
        assert len(first) == len(again) == 40
        assert set(first) == set(again)


@pytest.mark.parametrize(
    "change", [{"revision": -1}, {"detail": '{"reason": "compromised"}'}, {"type": 4}, {"key_id": "k"}]
)
def test_what_no_event_explains_is_not_sent(
    mail: Mail, store: Store, clock: FrozenClock, change: dict[str, Any]
) -> None:
    """A delivery without a matching event fails, is neither signed nor sent, and is found by an audit."""
    mail.pile_up("acme")
    store.write_serialized(lambda transaction: transaction.run(DeliveryRow.update(**change)))
    assert mail.turn() == []
    ((state, delivery_id),) = store.read("SELECT state, id FROM webhook_delivery")
    assert state == DeliveryState.FAILED
    assert f"delivery {delivery_id} does not match its event" in audit.run(store, clock).problems
