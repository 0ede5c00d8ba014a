"""Schedules, with a stepped clock: due, overdue and changed rotations, and warnings before an expiry."""

import pytest

from tests.harness import World, at, lasting
from tumbler.v1 import api_key_pb2
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND
from tumbler_server.events.log import EventType

DUE, OVERDUE, EXPIRING = EventType.ROTATION_DUE, EventType.ROTATION_OVERDUE, EventType.EXPIRING
WEEKLY = {"interval": lasting(7 * DAY)}


def said(world: World, key_id: str = "") -> list[EventType]:
    """Return the types of the scheduler's events so far, in order."""
    return [
        EventType(event.type)
        for event in world.events()
        if event.type in (DUE, OVERDUE, EXPIRING) and key_id in ("", event.key_id)
    ]


def step(world: World, span: int) -> None:
    """Advance the clock and let the service act."""
    world.clock.advance(span)
    world.turn()


class TestRotation:
    """ROTATION_DUE and ROTATION_OVERDUE."""

    def test_due(self, world: World) -> None:
        """ROTATION_DUE is logged once, at next_time and not before, with the actor `schedule` and no actor key."""
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
        """A due key works as before; its record keeps next_time and gets a new etag."""
        created = world.create(rotation=WEEKLY)
        step(world, 8 * DAY)
        assert world.verdict(created.key) == "VALID"
        now = world.get(created.api_key.id)
        assert now.rotation.next_time == created.api_key.rotation.next_time
        assert now.etag != created.api_key.etag

    def test_overdue_once(self, world: World) -> None:
        """ROTATION_OVERDUE is logged once, 24 hours after next_time, however long the rotation stays overdue."""
        world.create(rotation=WEEKLY)
        step(world, 7 * DAY)
        step(world, DAY - 1)
        assert said(world) == [DUE]
        step(world, 1)
        for _ in range(3):
            step(world, 30 * DAY)
        assert said(world) == [DUE, OVERDUE]

    def test_nobody_was_there(self, world: World) -> None:
        """After weeks without a server, ROTATION_DUE and ROTATION_OVERDUE are each logged once."""
        world.create(rotation={"interval": lasting(HOUR)})
        step(world, 30 * DAY)
        assert said(world) == [DUE, OVERDUE]

    def test_rotated_by_hand(self, world: World) -> None:
        """A rotation ends the old key's due state; the successor is due one interval after its creation."""
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
        """A new interval starts at the Update and clears the due state."""
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
        """Without a schedule, nothing becomes overdue."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY)
        world.update(key.id, "rotation")
        step(world, 30 * DAY)
        assert said(world) == [DUE]

    def test_revoked_while_due(self, world: World) -> None:
        """A revoked key does not become overdue."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY)
        world.revoke(key.id)
        step(world, 30 * DAY)
        assert said(world) == [DUE]

    def test_switched_off(self, world: World) -> None:
        """An inactive key does not become due; on activation, a due rotation is announced at once."""
        key = world.create(rotation=WEEKLY).api_key
        world.set_active(key.id, active=False)
        step(world, 7 * DAY)
        assert said(world) == []
        world.set_active(key.id, active=True)
        world.turn()
        assert said(world) == [DUE]

    def test_switched_off_while_due(self, world: World) -> None:
        """After a deactivation, a due rotation is announced again, because its earlier claim tokens are void."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 7 * DAY)
        world.set_active(key.id, active=False)
        world.set_active(key.id, active=True)
        step(world, DAY)
        step(world, DAY)
        assert said(world) == [DUE, DUE, OVERDUE]

    def test_expired(self, world: World) -> None:
        """An expired key does not become due; with a later expiry, it does."""
        key = world.create(rotation=WEEKLY, ttl=lasting(6 * HOUR)).api_key
        step(world, 8 * DAY)
        assert said(world) == []
        world.update(key.id, "expire_time", expire_time=at(world.clock.now + HOUR))
        world.turn()
        assert said(world) == [DUE, OVERDUE]

    def test_clock_set_back(self, world: World) -> None:
        """A clock that is set back causes no second event; the next events wait for it."""
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
        """A clock that was ahead makes a rotation due once, and a Rotate at the right time starts a new interval."""
        key = world.create(rotation=WEEKLY).api_key
        step(world, 365 * DAY)
        step(world, -365 * DAY)
        assert said(world) == [DUE, OVERDUE]
        new = world.rotate(key.id).api_key
        assert new.rotation.next_time == at(world.clock.now + 7 * DAY)
        step(world, 7 * DAY)
        assert said(world, new.id) == [DUE]

    def test_many(self, world: World) -> None:
        """More due keys than one transaction holds are announced in several, each key once."""
        for _ in range(120):
            world.create(rotation=WEEKLY)
        step(world, 7 * DAY)
        assert said(world) == [DUE] * 120
        assert len({event.key_id for event in world.events() if event.type == DUE}) == 120

    def test_two_servers(self, world: World, twin: World) -> None:
        """Of two servers on one database, only one acts."""
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
        """Each of the two warnings is logged once, at its time."""
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
        """A warning whose time had passed when the expiry was set is not logged, so short-lived keys have none."""
        world.create(ttl=lasting(ttl))
        for _ in range(16):
            step(world, DAY // 2)
        assert said(world) == [EXPIRING] * warnings

    def test_nobody_was_there(self, world: World) -> None:
        """If both warnings became due while no server ran, one is logged."""
        world.create(ttl=lasting(30 * DAY))
        step(world, 29 * DAY + HOUR)
        assert said(world) == [EXPIRING]
        step(world, 22 * HOUR)
        assert said(world) == [EXPIRING]

    def test_too_late(self, world: World) -> None:
        """An expired key has no warning."""
        world.create(ttl=lasting(30 * DAY))
        step(world, 30 * DAY)
        assert said(world) == []

    def test_later_expiry(self, world: World) -> None:
        """A later expiry has new warnings; setting the same expiry again has none."""
        key = world.create(ttl=lasting(30 * DAY)).api_key
        step(world, 23 * DAY)
        world.update(key.id, "expire_time", expire_time=key.expire_time)
        step(world, MINUTE)
        assert said(world) == [EXPIRING]
        world.update(key.id, "expire_time", expire_time=at(world.clock.now + 10 * DAY))
        step(world, 3 * DAY)
        assert said(world) == [EXPIRING, EXPIRING]

    def test_replaced(self, world: World) -> None:
        """A rotated key has no warning; its successor has its own."""
        old = world.create(ttl=lasting(30 * DAY)).api_key
        step(world, 10 * DAY)
        new = world.rotate(old.id, grace_period=lasting(30 * DAY)).api_key
        step(world, 19 * DAY)
        assert said(world) == []
        step(world, 4 * DAY)
        assert (said(world, old.id), said(world, new.id)) == ([], [EXPIRING])


def test_listed(world: World) -> None:
    """The scheduler's events are in the audit trail, and the audit finds no problem."""
    key = world.create(rotation=WEEKLY, ttl=lasting(30 * DAY)).api_key
    step(world, 29 * DAY)
    assert said(world) == [DUE, OVERDUE, EXPIRING]
    found = audit.run(world.core.store)
    assert found, found.problems
    assert world.get(key.id).state == api_key_pb2.STATE_ACTIVE
