"""Keys' lives in any order of events, on two servers of one database, against a model that is far simpler."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tumbler import keyformat
from tumbler.decide import Demand
from tumbler_server.clock import HOUR, MINUTE
from tumbler_server.errors import KeyIsExpired, KeyIsRevoked, KeyIsSuperseded, TumblerError
from tumbler_server.events import log
from tumbler_server.keys import audit
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.verifier import Question
from tumbler_server.store.database import open_store

SCOPES = ("orders:read", "orders:*", "users:read", "*", "tumbler:keys:read")
REQUIRED = ((), ("orders:read",), ("users:read", "orders:read"), ("tumbler:keys:read",))

spans = st.sampled_from([1, MINUTE, HOUR, 2 * HOUR])
lives = st.none() | spans
scopes = st.sets(st.sampled_from(SCOPES), max_size=2)
servers = st.integers(0, 1)


@dataclass(eq=False)
class ModelKey:
    """A key as the contract speaks of it. Times are None where something never happens."""

    id: str
    text: str
    created: int
    scopes: set[str]
    expires: int | None
    active: bool = True
    revoked: bool = False
    replaced: bool = False
    grace_ends: int | None = None
    events: list[str] = field(default_factory=lambda: ["CREATED"])

    def grants(self, required: str) -> bool:
        """Say whether a scope is granted, for the few scopes that there are here."""
        if required.startswith("tumbler:"):
            return required in self.scopes
        return (
            required in self.scopes or "*" in self.scopes or (required == "orders:read" and "orders:*" in self.scopes)
        )

    def verdict(self, now: int, required: tuple[str, ...]) -> str:
        """Return the verdict by the contract's table."""
        if self.revoked:
            return "REVOKED"
        if self.grace_ends is not None and now >= self.grace_ends:
            return "SUPERSEDED"
        if not self.active:
            return "INACTIVE"
        if self.expires is not None and now >= self.expires:
            return "EXPIRED"
        return "VALID" if all(self.grants(scope) for scope in required) else "INSUFFICIENT_SCOPE"

    def state(self, now: int) -> str:
        """Return the state by the contract's words."""
        if self.revoked:
            return "REVOKED"
        if self.replaced:
            return "SUPERSEDED"
        if not self.active:
            return "INACTIVE"
        return "EXPIRED" if self.expires is not None and now >= self.expires else "ACTIVE"

    def refusal(self, now: int) -> type[TumblerError] | None:
        """Return why the key cannot be rotated."""
        if self.revoked:
            return KeyIsRevoked
        if self.replaced:
            return KeyIsSuperseded
        return KeyIsExpired if self.expires is not None and now >= self.expires else None


class Lives(RuleBasedStateMachine):
    """Two servers, each of which changes keys and answers for them."""

    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        url = f"sqlite:////{str(Path(self._folder.name)).lstrip('/')}/test.db"
        self.clock = FrozenClock()
        self.servers = [Domain(new_store(url), self.clock), Domain(open_store(url), self.clock)]
        self.model: list[ModelKey] = []

    @initialize(target=keys)
    def first(self) -> ModelKey:
        """Begin with one key that may do something and never ends."""
        return self.create(0, {"orders:*"}, None)

    @rule(target=keys, server=servers, granted=scopes, ttl=lives)
    def create(self, server: int, granted: set[str], ttl: int | None) -> ModelKey:
        """Create a key."""
        issued = self.servers[server].create(scopes=tuple(granted), ttl=ttl)
        return self._add(issued.key.id, issued.text, granted, None if ttl is None else self.clock.now + ttl)

    @rule(server=servers, key=keys, granted=scopes)
    def change_scopes(self, server: int, key: ModelKey, granted: set[str]) -> None:
        """Change a key's scopes; a revoked key cannot be changed."""
        edit = Edit(key.id, Draft("", scopes=tuple(granted)), ("scopes",))
        if self._changed(server, key, edit, granted != key.scopes):
            key.scopes = set(granted)

    @rule(server=servers, key=keys, ttl=lives)
    def change_expiry(self, server: int, key: ModelKey, ttl: int | None) -> None:
        """Change when a key expires, or let it never expire."""
        expires = None if ttl is None else self.clock.now + ttl
        edit = Edit(key.id, Draft("", expire_time=expires), ("expire_time",))
        if self._changed(server, key, edit, expires != key.expires):
            key.expires = expires

    @rule(server=servers, key=keys, active=st.booleans())
    def switch(self, server: int, key: ModelKey, active: bool) -> None:
        """Switch a key on or off."""
        if key.revoked:
            with pytest.raises(KeyIsRevoked):
                self.servers[server].lifecycle.set_active(OPERATOR, key.id, active)
            return
        self.servers[server].lifecycle.set_active(OPERATOR, key.id, active)
        if active != key.active:
            key.events.append("ACTIVATED" if active else "DEACTIVATED")
        key.active = active

    @rule(server=servers, key=keys)
    def revoke(self, server: int, key: ModelKey) -> None:
        """Revoke a key; a second time changes nothing."""
        self.servers[server].revoke(key.id)
        if not key.revoked:
            key.events.append("REVOKED")
        key.revoked = True

    @rule(target=keys, server=servers, key=keys, grace=st.just(0) | spans, ttl=lives)
    def rotate(self, server: int, key: ModelKey, grace: int, ttl: int | None) -> ModelKey | object:
        """Rotate a key, unless it is revoked, rotated or expired; the successor is what the key was."""
        now = self.clock.now
        refusal = key.refusal(now)
        if refusal is not None:
            with pytest.raises(refusal):
                self.servers[server].rotate(key.id, grace=grace, ttl=ttl)
            return multiple()
        issued = self.servers[server].rotate(key.id, grace=grace, ttl=ttl)
        key.replaced = True
        key.grace_ends = now + grace if key.expires is None else min(now + grace, key.expires)
        key.events.append("ROTATED")
        if ttl is not None:
            expires: int | None = now + ttl
        else:
            expires = None if key.expires is None else now + key.expires - key.created
        successor = self._add(issued.key.id, issued.text, key.scopes, expires)
        successor.active = key.active
        return successor

    @rule(span=spans)
    def wait(self, span: int) -> None:
        """Let time go on."""
        self.clock.advance(span)

    @invariant()
    def every_verdict_is_the_models(self) -> None:
        """On both servers, every key's verdict is the model's, whatever is asked of it."""
        for server in self.servers:
            for key in self.model:
                for required in REQUIRED:
                    code = server.verifier.verify(Question(key.text, Demand(required_scopes=required))).code
                    assert code.name == key.verdict(self.clock.now, required)

    @invariant()
    def every_state_is_the_models(self) -> None:
        """Every key's state is the model's."""
        for key in self.model:
            found = self.servers[0].lifecycle.get(OPERATOR, key.id)
            assert found.key.state(found.now).name == key.state(self.clock.now)

    @invariant()
    def a_wrong_secret_is_not_found(self) -> None:
        """Whatever is known of a key, a wrong secret is never accepted for it."""
        for key in self.model[-2:]:
            wrong = keyformat.build("tmb", key.id, "0" * keyformat.SECRET_LENGTH)
            assert self.servers[0].verifier.verify(Question(wrong)).code.name == "NOT_FOUND"

    def teardown(self) -> None:
        """At the end the log tells each key's life, and the audit finds nothing wrong."""
        store = self.servers[0].store
        assert audit.run(store).problems == ()
        told: dict[str, list[str]] = {}
        for key_id, number in store.read("SELECT key_id, type FROM event ORDER BY revision"):
            told.setdefault(key_id, []).append(log.EventType(number).name)
        assert told == {key.id: key.events for key in self.model}
        for server in self.servers:
            server.close()
            server.store.close()
        self._folder.cleanup()

    def _add(self, key_id: str, text: str, granted: set[str], expires: int | None) -> ModelKey:
        key = ModelKey(key_id, text, self.clock.now, set(granted), expires)
        self.model.append(key)
        return key

    def _changed(self, server: int, key: ModelKey, edit: Edit, differs: bool) -> bool:
        if key.revoked:
            with pytest.raises(KeyIsRevoked):
                self.servers[server].lifecycle.update(OPERATOR, edit)
            return False
        self.servers[server].lifecycle.update(OPERATOR, edit)
        if differs:
            key.events.append("UPDATED")
        return True


class TestLives(Lives.TestCase):  # type: ignore[misc,name-defined]
    """Whatever happens to keys, in whatever order, on whichever server: verdicts, states and log are the model's."""

    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
