"""What time brings to a key: a rotation that is due, then overdue, and an expiry that comes near.

Pure functions over records. What they say is due is written to the log by ``keys.alarms``; when to look at a key again
is kept on its row, so that one indexed query finds all whose time has come.
"""

from dataclasses import replace

from tumbler_server.clock import DAY, NEVER, rfc3339
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys.record import Key

OVERDUE_AFTER = DAY
"""A rotation that is due so long is overdue."""

WARNINGS = (7 * DAY, DAY)
"""How long before its expiry a key's owner is warned."""

ACTOR = Actor("", "schedule")
"""Who makes these events."""


def next_rotation(interval: int, now: int) -> int:
    """Return when a key that was made, rotated or given this interval now is to be rotated; 0: it has none."""
    return now + interval if interval else NEVER


def given_warnings(expire_time: int, now: int) -> int:
    """Return how many warnings have no sense any more for an expiry that is set now: it is nearer than they are."""
    return sum(1 for lead in WARNINGS if expire_time - lead <= now)


def alarm_time(key: Key, now: int) -> int:
    """Return when ``due`` will have something to say of a key; ``NEVER``, unless somebody changes it."""
    if not key.active or key.revoked or key.replaced_by_key_id or now >= key.expire_time:
        return NEVER
    moment = min(_rotation_moment(key), _warning_moment(key))
    return moment if moment < key.expire_time else NEVER


def due(key: Key, revision: int, now: int) -> tuple[list[Change], Key]:
    """Return the events that a key is due by ``now``, and the key as they leave it, the last one's revision included.

    ``revision`` is the first event's. Where there are none, the key is the same.
    """
    if alarm_time(key, now) > now:
        return [], key
    changes: list[Change] = []
    after = key
    if not after.rotation_due_revision and _rotation_moment(after) <= now:
        changes.append(_change(key, EventType.ROTATION_DUE, now, due_time=key.rotation_next_time))
        after = replace(after, rotation_due_revision=revision)
    if after.rotation_due_revision and _rotation_moment(after) <= now:
        changes.append(_change(key, EventType.ROTATION_OVERDUE, now, due_time=key.rotation_next_time))
        after = replace(after, rotation_overdue=True)
    if _warning_moment(after) <= now:
        # Of two that have come, since nobody was there to give the first, the nearer one is said alone.
        changes.append(_change(key, EventType.EXPIRING, now, expire_time=key.expire_time))
        after = replace(after, expiry_warnings=given_warnings(key.expire_time, now))
    if not changes:
        return [], key
    return changes, replace(after, update_time=now, revision=revision + len(changes) - 1)


def _rotation_moment(key: Key) -> int:
    if not key.rotation_due_revision or key.rotation_next_time == NEVER:
        return key.rotation_next_time
    return NEVER if key.rotation_overdue else key.rotation_next_time + OVERDUE_AFTER


def _warning_moment(key: Key) -> int:
    if key.expire_time == NEVER or key.expiry_warnings >= len(WARNINGS):
        return NEVER
    return key.expire_time - WARNINGS[key.expiry_warnings]


def _change(key: Key, happened: EventType, now: int, **times: int) -> Change:
    detail = {name: rfc3339(instant) for name, instant in times.items()}
    return Change(happened, key.id, key.project_id, key.environment_id, now, ACTOR, detail)
