"""Schedules, with a clock that is stepped: due, overdue, changed meanwhile, and warnings before an expiry."""

import pytest

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.events.log import EventType
from tumbler_server.keys import audit

DUE, OVERDUE, EXPIRING = EventType.ROTATION_DUE, EventType.ROTATION_OVERDUE, EventType.EXPIRING
WEEKLY = {"interval": lasting(7 * DAY)}


def said(world: World, key_id: str = "") -> list[EventType]:
    """Return what time has brought so far, in order."""
    return [
        EventType(event.type)
        for event in world.events()
        if event.type in (DUE, OVERDUE, EXPIRING) and key_id in ("", event.key_id)
    ]


def step(world: World, span: int) -> None:
    """Let time go by, and the service do what that demands."""
    world.clock.advance(span)
    world.turn()


class TestRotation:
    """ROTATION_DUE and ROTATION_OVERDUE."""

    def test_due(self, world: World) -> None:
        """Nothing is said before next_time, and at that instant it is said once, by nobody's key."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY - 1)
        assert said(world) == []
        step(world, 1)
        step(world, HOUR)
        assert said(world) == [DUE]
        event = world.events()[-1]
        assert (event.key_id, event.actor_key_id, event.actor_name) == (key.id, "", "schedule")
        assert event.detail == '{"due_time": "2030-01-08T00:00:00Z"}'

    def test_the_key_goes_on(self, world: World) -> None:
        """A key that is due works as before; its record says the same next_time, and another etag."""
        created = world.create(rotation=WEEKLY)
        step(world, 8 * DAY)
        assert world.verdict(created.key) == "VALID"
        now = world.get(created.api_key.id)
        assert now.rotation.next_time == created.api_key.rotation.next_time
        assert now.etag != created.api_key.etag

    def test_overdue_once(self, world: World) -> None:
        """24 hours after next_time it is overdue; that is said once, however long it lasts."""
        world.create(rotation=WEEKLY)
        step(world, 7 * DAY)
        step(world, DAY - 1)
        assert said(world) == [DUE]
        step(world, 1)
        for _ in range(3):
            step(world, 30 * DAY)
        assert said(world) == [DUE, OVERDUE]

    def test_nobody_was_there(self, world: World) -> None:
        """Where no server ran for weeks, what is due is said once, and that it is overdue."""
        world.create(rotation={"interval": lasting(HOUR)})
        step(world, 30 * DAY)
        assert said(world) == [DUE, OVERDUE]

    def test_rotated_by_hand(self, world: World) -> None:
        """A rotation ends what was due; the successor's turn comes one interval after it was made."""
        old = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY + HOUR)
        new = world.rotate(old.id).api_key
        assert new.rotation.next_time == at(world.clock.now + 7 * DAY)
        step(world, 7 * DAY - 1)
        assert said(world, new.id) == []
        step(world, 1)
        assert said(world, new.id) == [DUE]
        step(world, 7 * DAY)
        assert said(world, old.id) == [DUE]

    def test_interval_changed_while_due(self, world: World) -> None:
        """A new interval begins at its change, and forgets that the old one was due."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY + HOUR)
        changed = world.update(key.id, "rotation", rotation={"interval": lasting(2 * DAY)}).api_key
        assert changed.rotation.next_time == at(world.clock.now + 2 * DAY)
        step(world, 2 * DAY - 1)
        assert said(world) == [DUE]
        step(world, 1)
        assert said(world) == [DUE, DUE]
        step(world, DAY)
        assert said(world) == [DUE, DUE, OVERDUE]

    def test_schedule_removed_while_due(self, world: World) -> None:
        """Without a schedule nothing becomes overdue."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY)
        world.update(key.id, "rotation")
        step(world, 30 * DAY)
        assert said(world) == [DUE]

    def test_revoked_while_due(self, world: World) -> None:
        """A revoked key is not overdue."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY)
        world.revoke(key.id)
        step(world, 30 * DAY)
        assert said(world) == [DUE]

    def test_switched_off(self, world: World) -> None:
        """A deactivated key is not due; switched on again, it is at once what it would have been."""
        key = world.create(rotation=WEEKLY).api_key
        world.set_active(key.id, active=False)
        step(world, 7 * DAY)
        assert said(world) == []
        world.set_active(key.id, active=True)
        world.turn()
        assert said(world) == [DUE]

    def test_switched_off_while_due(self, world: World) -> None:
        """What was due is announced again after a deactivation, since the claim tokens from before count no more."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY)
        world.set_active(key.id, active=False)
        world.set_active(key.id, active=True)
        step(world, DAY)
        step(world, DAY)
        assert said(world) == [DUE, DUE, OVERDUE]

    def test_expired(self, world: World) -> None:
        """A key that has expired is not due; one that is given more time is."""
        key = world.create(rotation=WEEKLY, ttl=lasting(6 * HOUR)).api_key
        step(world, 8 * DAY)
        assert said(world) == []
        world.update(key.id, "expire_time", expire_time=at(world.clock.now + HOUR))
        world.turn()
        assert said(world) == [DUE, OVERDUE]

    def test_clock_set_back(self, world: World) -> None:
        """A clock that is set back says nothing twice, and is waited for."""
        world.create(rotation=WEEKLY)
        step(world, 7 * DAY)
        step(world, -3 * DAY)
        assert said(world) == [DUE]
        world.create(rotation={"interval": lasting(DAY)})
        step(world, DAY)
        assert said(world) == [DUE, DUE]
        step(world, 3 * DAY)
        assert said(world) == [DUE, DUE, OVERDUE, OVERDUE]

    def test_clock_set_forward(self, world: World) -> None:
        """A clock that was ahead for a moment makes things due once, and a rotation by the right one starts anew."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 365 * DAY)
        step(world, -365 * DAY)
        assert said(world) == [DUE, OVERDUE]
        new = world.rotate(key.id).api_key
        assert new.rotation.next_time == at(world.clock.now + 7 * DAY)
        step(world, 7 * DAY)
        assert said(world, new.id) == [DUE]

    def test_many(self, world: World) -> None:
        """More keys than one transaction takes are all announced in one go of several, each once."""
        for _ in range(120):
            world.create(rotation=WEEKLY)
        step(world, 7 * DAY)
        assert said(world) == [DUE] * 120
        assert len({event.key_id for event in world.events() if event.type == DUE}) == 120

    def test_two_servers(self, world: World, twin: World) -> None:
        """Of two servers on one database, one acts."""
        world.turn()
        world.create(rotation=WEEKLY)
        world.clock.advance(7 * DAY)
        twin.turn()
        assert said(world) == []
        world.turn()
        twin.turn()
        assert said(world) == [DUE]


class TestExpiry:
    """EXPIRING, 7 days and 1 day ahead."""

    def test_twice(self, world: World) -> None:
        """Both warnings come at their instant, each once."""
        world.create(ttl=lasting(30 * DAY))
        step(world, 23 * DAY - 1)
        assert said(world) == []
        step(world, 1)
        step(world, 5 * DAY)
        assert said(world) == [EXPIRING]
        step(world, DAY)
        step(world, HOUR)
        assert said(world) == [EXPIRING, EXPIRING]
        assert world.events()[-1].detail == '{"expire_time": "2030-01-31T00:00:00Z"}'

    @pytest.mark.parametrize(
        ("ttl", "warnings"), [(HOUR, 0), (DAY, 0), (DAY + SECOND, 1), (7 * DAY, 1), (7 * DAY + SECOND, 2)]
    )
    def test_short_lives(self, world: World, ttl: int, warnings: int) -> None:
        """No warning comes that was nearer than its lead when the expiry was set: short-lived keys are not news."""
        world.create(ttl=lasting(ttl))
        for _ in range(16):
            step(world, DAY // 2)
        assert said(world) == [EXPIRING] * warnings

    def test_nobody_was_there(self, world: World) -> None:
        """Of two warnings that have come meanwhile, one is given."""
        world.create(ttl=lasting(30 * DAY))
        step(world, 29 * DAY + HOUR)
        assert said(world) == [EXPIRING]
        step(world, 22 * HOUR)
        assert said(world) == [EXPIRING]

    def test_too_late(self, world: World) -> None:
        """An expired key is not warned of."""
        world.create(ttl=lasting(30 * DAY))
        step(world, 30 * DAY)
        assert said(world) == []

    def test_later_expiry(self, world: World) -> None:
        """A later expiry is warned of anew; the same one, set again, is not."""
        key = world.create(ttl=lasting(30 * DAY)).api_key
        step(world, 23 * DAY)
        world.update(key.id, "expire_time", expire_time=key.expire_time)
        step(world, MINUTE)
        assert said(world) == [EXPIRING]
        world.update(key.id, "expire_time", expire_time=at(world.clock.now + 10 * DAY))
        step(world, 3 * DAY)
        assert said(world) == [EXPIRING, EXPIRING]

    def test_replaced(self, world: World) -> None:
        """A key that was rotated is not warned of; its successor is, in its own time."""
        old = world.create(ttl=lasting(30 * DAY)).api_key
        step(world, 10 * DAY)
        new = world.rotate(old.id, grace_period=lasting(30 * DAY)).api_key
        step(world, 19 * DAY)
        assert said(world) == []
        step(world, 4 * DAY)
        assert (said(world, old.id), said(world, new.id)) == ([], [EXPIRING])


def test_listed(world: World) -> None:
    """Events that time brings are in the audit trail, whose chain stays whole."""
    key = world.create(rotation=WEEKLY, ttl=lasting(30 * DAY)).api_key
    step(world, 29 * DAY)
    assert said(world) == [DUE, OVERDUE, EXPIRING]
    found = audit.run(world.core.store)
    assert found, found.problems
    assert world.get(key.id).state == api_key_pb2.STATE_ACTIVE
