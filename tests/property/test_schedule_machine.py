"""Schedules, warnings and claims in any order of events, compared with a much simpler model."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR, NEVER
from tumbler_server.errors import ClaimOutdated, KeyIsExpired, KeyIsRevoked, KeyIsSuperseded, TumblerError
from tumbler_server.events import log
from tumbler_server.keys import record, schedule
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.scheduler.alarms import Alarms
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import ApiKeyRow

intervals = st.none() | st.sampled_from([HOUR, 12 * HOUR, 3 * DAY])
lives = st.none() | st.sampled_from([HOUR, 2 * DAY, 9 * DAY])
spans = st.sampled_from([1, HOUR, DAY, 7 * DAY])


@dataclass(eq=False)
class ModelKey:
    """A key in the terms of docs/rotation.md. A time is None if the event never happens."""

    id: str
    made: int
    expires: int | None
    interval: int | None
    next_time: int | None
    warnings: list[int] = field(default_factory=list)
    active: bool = True
    revoked: bool = False
    replaced: bool = False
    token: str = ""
    overdue: bool = False
    events: list[str] = field(default_factory=lambda: ["CREATED"])

    def refusal(self, now: int) -> type[TumblerError] | None:
        """Return the error of a replacement of the key, or None if it can be replaced."""
        if self.revoked:
            return KeyIsRevoked
        if self.replaced:
            return KeyIsSuperseded
        return KeyIsExpired if self.expires is not None and now >= self.expires else None

    def plan(self, now: int, expires: int | None) -> None:
        """Set an expiry, and the times of the warnings before it."""
        self.expires = expires
        self.warnings = [] if expires is None else [expires - lead for lead in (7 * DAY, DAY) if expires - lead > now]


class Schedules(RuleBasedStateMachine):
    """One server, which holds the lease."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.clock = FrozenClock()
        store = new_store(f"sqlite:////{str(Path(self._folder.name)).lstrip('/')}/test.db")
        self.domain = Domain(store, self.clock)
        self.lease = Lease(store, "test")
        self.lease.keep()
        self.alarms = Alarms(store, self.clock)
        self.model: list[ModelKey] = []
        self.tokens: list[tuple[ModelKey, str]] = []

    @initialize(target=keys)
    def first(self) -> ModelKey:
        """Begin with one key that has a schedule and never expires."""
        return self.create(12 * HOUR, None)

    @rule(target=keys, interval=intervals, ttl=lives)
    def create(self, interval: int | None, ttl: int | None) -> ModelKey:
        """Create a key."""
        issued = self.domain.create(rotation_interval=interval, ttl=ttl)
        return self._add(issued.key.id, interval, None if ttl is None else self.clock.now + ttl)

    @rule(key=keys, interval=intervals)
    def change_interval(self, key: ModelKey, interval: int | None) -> None:
        """Change or remove a key's schedule."""
        edit = Edit(key.id, Draft("", rotation_interval=interval), ("rotation",))
        if self._changed(key, edit, interval != key.interval):
            key.interval, key.token, key.overdue = interval, "", False
            key.next_time = None if interval is None else self.clock.now + interval

    @rule(key=keys, ttl=lives)
    def change_expiry(self, key: ModelKey, ttl: int | None) -> None:
        """Change or remove a key's expiry."""
        expires = None if ttl is None else self.clock.now + ttl
        edit = Edit(key.id, Draft("", expire_time=expires), ("expire_time",))
        if self._changed(key, edit, expires != key.expires):
            key.plan(self.clock.now, expires)

    @rule(key=keys, active=st.booleans())
    def switch(self, key: ModelKey, active: bool) -> None:
        """Activate or deactivate a key. A pending rotation is announced again."""
        if key.revoked:
            return
        self.domain.lifecycle.set_active(OPERATOR, key.id, active)
        if active != key.active:
            key.events.append("ACTIVATED" if active else "DEACTIVATED")
            key.active, key.token = active, ""

    @rule(key=keys)
    def revoke(self, key: ModelKey) -> None:
        """Revoke a key."""
        self.domain.revoke(key.id)
        if not key.revoked:
            key.events.append("REVOKED")
        key.revoked = True

    @rule(target=keys, key=keys)
    def rotate(self, key: ModelKey) -> ModelKey | object:
        """Rotate a key by hand."""
        refusal = key.refusal(self.clock.now)
        if refusal is not None:
            with pytest.raises(refusal):
                self.domain.rotate(key.id)
            return multiple()
        return self._replaced(key, self.domain.rotate(key.id).key.id, ["ROTATED"])

    @rule(target=keys, choice=st.integers(0, 1_000))
    def claim(self, choice: int) -> ModelKey | object:
        """Claim with any token that was ever issued."""
        if not self.tokens:
            return multiple()
        key, token = self.tokens[choice % len(self.tokens)]
        refusal = key.refusal(self.clock.now)
        if refusal is None and (not key.active or key.token != token):
            refusal = ClaimOutdated
        if refusal is not None:
            with pytest.raises(refusal):
                self.domain.rotations.claim(token, HOUR)
            return multiple()
        claimed = self.domain.rotations.claim(token, HOUR)
        return self._replaced(key, claimed.key.id, ["ROTATION_CLAIMED", "ROTATED"])

    @rule(span=spans)
    def wait(self, span: int) -> None:
        """Let time pass without any timed work."""
        self.clock.advance(span)

    @rule()
    def act(self) -> None:
        """Do all timed work that is due."""
        while self.alarms.work(self.lease):
            pass
        for key in self.model:
            self._say(key)

    @invariant()
    def alarms_are_set(self) -> None:
        """Each key's row has the time of its next alarm, unless nothing more is due, whatever the last change was."""
        for row in self.domain.store.select(ApiKeyRow.select()):
            key = record.from_row(row)
            alarm_time = schedule.alarm_time(key, self.clock.now)
            if alarm_time != NEVER:
                assert row.alarm_time == alarm_time

    def teardown(self) -> None:
        """At the end, the log has each key's events, and the audit finds nothing wrong."""
        store = self.domain.store
        assert audit.run(store, self.clock).problems == ()
        told: dict[str, list[str]] = {}
        for key_id, number in store.read("SELECT key_id, type FROM event ORDER BY revision"):
            told.setdefault(key_id, []).append(log.EventType(number).name)
        assert told == {key.id: key.events for key in self.model}
        self.domain.close()
        store.close()
        self._folder.cleanup()

    def _say(self, key: ModelKey) -> None:
        now = self.clock.now
        if not key.active or key.refusal(now):
            return
        if key.next_time is not None and now >= key.next_time and not key.token:
            key.events.append("ROTATION_DUE")
            (row,) = self.domain.store.select(ApiKeyRow.select().where(ApiKeyRow.id == key.id))
            key.token = self.domain.claim_tokens.token(key.id, row.rotation_due_revision)
            self.tokens.append((key, key.token))
        if key.token and not key.overdue and key.next_time is not None and now >= key.next_time + DAY:
            key.events.append("ROTATION_OVERDUE")
            key.overdue = True
        if any(now >= warning for warning in key.warnings):
            key.events.append("EXPIRING")
            key.warnings = [warning for warning in key.warnings if warning > now]

    def _replaced(self, key: ModelKey, successor_id: str, events: list[str]) -> ModelKey:
        now = self.clock.now
        key.replaced = True
        key.events += events
        successor = self._add(successor_id, key.interval, None if key.expires is None else now + key.expires - key.made)
        successor.active = key.active
        return successor

    def _add(self, key_id: str, interval: int | None, expires: int | None) -> ModelKey:
        now = self.clock.now
        key = ModelKey(key_id, now, None, interval, None if interval is None else now + interval)
        key.plan(now, expires)
        self.model.append(key)
        return key

    def _changed(self, key: ModelKey, edit: Edit, differs: bool) -> bool:
        if key.revoked:
            with pytest.raises(KeyIsRevoked):
                self.domain.lifecycle.update(OPERATOR, edit)
            return False
        self.domain.lifecycle.update(OPERATOR, edit)
        if differs:
            key.events.append("UPDATED")
        return True


class TestSchedules(Schedules.TestCase):  # type: ignore[misc,name-defined]
    """The events of keys, and the tokens that can claim them, match the model, whatever happens, in any order."""

    settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
