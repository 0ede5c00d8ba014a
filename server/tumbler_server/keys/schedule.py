"""Time-based events of keys: rotation due, rotation overdue, and expiry approaching.

These are pure functions over records. ``scheduler.alarms`` writes the due events to the log. A key's row holds its next
alarm time, so one indexed query finds all keys that are due.
"""

from dataclasses import replace

from tumbler_server.clock import DAY, NEVER, rfc3339
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys.record import Key
from tumbler_server.store.models import lives

OVERDUE_AFTER = DAY
"""The time after which a due rotation is overdue."""

WARNINGS = (7 * DAY, DAY)
"""How long before expiry the key's owner is warned."""

ACTOR = Actor("", "schedule")
"""The actor of these events."""


def next_rotation(interval: int, now: int) -> int:
    """Return when a key is next due for rotation, counted from ``now``, or ``NEVER`` if ``interval`` is 0."""
    return now + interval if interval else NEVER


def given_warnings(expire_time: int, now: int) -> int:
    """Return how many warnings to skip for an expiry set at ``now``: those whose time has already passed."""
    return sum(1 for lead in WARNINGS if expire_time - lead <= now)


def alarm_time(key: Key, now: int) -> int:
    """Return when ``due`` next has events for a key, or ``NEVER`` if it has none unless the key changes."""
    if not lives(key, now):
        return NEVER
    moment = min(_rotation_moment(key), _warning_moment(key))
    return moment if moment < key.expire_time else NEVER


def due(key: Key, revision: int, now: int) -> tuple[list[Change], Key]:
    """Return a key's events due by ``now``, and the key after them, with the revision of the last one.

    ``revision`` is the revision of the first event. If there are no events, the key is unchanged.
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
        # If two warnings have come due, because no process acted on the first, one event stands for both.
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
