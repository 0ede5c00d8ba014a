"""A clock that jumps by a year removes and announces nothing, whatever is there to remove or announce."""

from typing import Any

import pytest

from tests.harness import World, at, lasting
from tests.webhooks.receiver import Receiver
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR
from tumbler_server.events import log
from tumbler_server.events.log import EventType
from tumbler_server.scheduler import timekeeping

AHEAD, BEHIND = 500 * DAY, -365 * DAY


def everything(world: World) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that time can remove or change: events, keys without usage, webhooks, endpoints and requests."""
    keys = "id, project_id, revision, rotation_due_revision, rotation_overdue, expiry_warnings, alarm_time"
    queries = {
        "events": "SELECT * FROM event ORDER BY revision",
        "keys": f"SELECT {keys} FROM api_key ORDER BY id",  # noqa: S608 - names of our own
        "endpoints": "SELECT id, secret, previous_secret, off_time FROM webhook_endpoint ORDER BY id",
        "deliveries": "SELECT id, state, give_up_time FROM webhook_delivery ORDER BY revision",
        "requests": "SELECT * FROM request ORDER BY request_id",
    }
    return {name: world.core.store.read(query) for name, query in queries.items()}


def pass_by(world: World) -> None:
    """Let two hours pass, with all periodic work."""
    for _ in range(2):
        world.monotonic.advance(HOUR)
        world.clock.advance(HOUR)
        while world.scheduler.acting.turn():
            world.scheduler.dispatch.drain()
        world.core.retention.remove()
        world.core.usage.flush()


@pytest.fixture
def busy(mailing: World, receiver: Receiver) -> World:
    """Return a service with something of each kind that time removes or announces, some of it soon."""
    hook = {"interval": lasting(7 * DAY), "webhook_url": receiver.url}
    told = mailing.create(rotation=hook).api_key.id
    mailing.create(rotation=hook, ttl=lasting(30 * DAY))
    mailing.create(ttl=lasting(10 * DAY))
    mailing.revoke(mailing.create(rotation={**hook, "webhook_url": receiver.url + "unused"}).api_key.id)
    mailing.rotate(told, grace_period=lasting(DAY))
    mailing.turn()
    mailing.clock.advance(HOUR)
    receiver.status = 500
    mailing.revoke(mailing.create(rotation=hook).api_key.id)
    mailing.turn()
    states = [row[0] for row in mailing.core.store.read("SELECT DISTINCT state FROM webhook_delivery")]
    assert len(states) > 1, "some have been delivered, and some wait"
    mailing.core.retention.remove()  # The first key was created by the machine's own clock, years ago.
    return mailing


@pytest.mark.parametrize("leap", [AHEAD, BEHIND])
def test_a_leap_removes_and_announces_nothing(busy: World, leap: int) -> None:
    """A jump of the clock leaves events, deliveries, endpoints and alarms unchanged, and the audit finds no problem.

    After the clock is confirmed, due work is done.
    """
    before = everything(busy)
    right = busy.clock.now
    busy.clock.advance(leap)
    pass_by(busy)
    assert everything(busy) == before
    assert audit.run(busy.core.store, busy.clock)
    assert busy.scheduler.acting.lease.held, "it was there to do it"

    timekeeping.trust(busy.core.store, busy.clock.now)
    pass_by(busy)
    if leap == AHEAD:
        after = everything(busy)
        assert busy.clock.now > right + AHEAD
        assert log.anchor(busy.core.store) > 0
        assert {EventType.ROTATION_DUE, EventType.EXPIRING} & {event.type for event in busy.events()}
        assert len(after["endpoints"]) < len(before["endpoints"])
        assert not {row[0] for row in before["deliveries"]} & {row[0] for row in after["deliveries"]}
        assert audit.run(busy.core.store, busy.clock)


@pytest.mark.parametrize("leap", [AHEAD, BEHIND])
def test_when_a_key_was_used_is_told_by_the_right_time(world: World, leap: int) -> None:
    """A use while the clock is wrong is recorded with the right time, and never with a time in the future."""
    created = world.create()
    world.turn()
    pass_by(world)
    world.clock.advance(leap)
    assert world.verdict(created.key) == "VALID"
    world.core.usage.flush()
    right = world.clock.now - leap
    assert world.get(created.api_key.id).last_used_time == at(right)

    assert world.verdict(created.key) == "VALID"
    world.clock.advance(HOUR - leap)
    world.core.usage.flush()
    used = world.get(created.api_key.id).last_used_time.ToMicroseconds()
    assert right <= used <= world.clock.now
