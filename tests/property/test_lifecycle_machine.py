"""Keys' lives in any order of events, on two servers of one database, compared with a much simpler model."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tumbler import keyformat
from tumbler.decide import Demand
from tumbler_server.audit import audit
from tumbler_server.clock import HOUR, MINUTE
from tumbler_server.errors import InvalidFields, KeyIsExpired, KeyIsRevoked, KeyIsSuperseded, TumblerError
from tumbler_server.events import log
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.keys.record import OldKeyEnds
from tumbler_server.store.database import Store, open_store
from tumbler_server.verify.first_use import LINE
from tumbler_server.verify.verifier import Question

SCOPES = ("orders:read", "orders:*", "users:read", "*", "tumbler:keys:read")
REQUIRED = ((), ("orders:read",), ("users:read", "orders:read"), ("tumbler:keys:read",))

NOBODYS = ("tumbler:keys:update",)
"""Scopes that no key grants."""

spans = st.sampled_from([1, MINUTE, HOUR, 2 * HOUR])
lives = st.none() | spans
scopes = st.sets(st.sampled_from(SCOPES), max_size=2)
servers = st.integers(0, 1)
choices = st.integers(0, 3)
endings = st.sampled_from([(2 * HOUR, True), (HOUR, True), (HOUR, False), (0, False)])
"""The grace period of a replaced key, and whether it ends at its successor's first use."""


@dataclass(eq=False)
class ModelKey:
    """A key in the terms of the contract. A time is None if the event never happens."""

    id: str
    text: str
    created: int
    scopes: set[str]
    expires: int | None
    active: bool = True
    revoked: bool = False
    replaced: bool = False
    grace_ends: int | None = None
    waits: bool = False
    """Whether it ends at its successor's first use."""
    replaces: "ModelKey | None" = None
    unused: bool = False
    """Whether its first use will end the key that it replaces, and is not written yet."""
    events: list[str] = field(default_factory=lambda: ["CREATED"])

    def grants(self, required: str) -> bool:
        """Return whether a scope is granted, for the few scopes used here."""
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
        """Return the state by the contract's definitions."""
        if self.revoked:
            return "REVOKED"
        if self.replaced:
            return "SUPERSEDED"
        if not self.active:
            return "INACTIVE"
        return "EXPIRED" if self.expires is not None and now >= self.expires else "ACTIVE"

    def use(self, now: int) -> None:
        """Apply a first use: it ends the predecessors, back through those that were replaced before their own use."""
        if not self.unused:
            return
        self.events.append("FIRST_USED")
        later, earlier = self, self.replaces
        for _ in range(LINE):
            if not later.unused or earlier is None:
                break
            if earlier.waits and not earlier.revoked and earlier.grace_ends is not None and now < earlier.grace_ends:
                earlier.grace_ends, earlier.waits = now, False
                earlier.events.append("UPDATED")
            later, earlier = earlier, earlier.replaces
        self.unused = False

    def refusal(self, now: int) -> type[TumblerError] | None:
        """Return the error of a rotation of the key, or None if it can be rotated."""
        if self.revoked:
            return KeyIsRevoked
        if self.replaced:
            return KeyIsSuperseded
        return KeyIsExpired if self.expires is not None and now >= self.expires else None


class Lines(RuleBasedStateMachine):
    """Two servers, each of which creates, replaces and verifies keys."""

    keys = Bundle("keys")

    processes = 2
    """With one, both of ``servers`` are the same."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._url = self.place(Path(self._folder.name))
        self.clock = FrozenClock()
        first = Domain(self.founded(self._url), self.clock)
        self.servers = [first, self._begun() if self.processes > 1 else first]
        noted: dict[ModelKey, None] = {}
        self.noted = [noted, {} if self.processes > 1 else noted]
        """The first uses that each server has noted, and not written yet."""
        self.model: list[ModelKey] = []

    def place(self, folder: Path) -> str:
        """Return the URL of a new, empty database."""
        return f"sqlite:////{str(folder).lstrip('/')}/test.db"

    def founded(self, url: str) -> Store:
        """Open a database with its tables, all empty."""
        return new_store(url)

    def settle(self) -> None:
        """Make each server see the other's changes. On SQLite this needs no action."""

    @initialize(target=keys)
    def first(self) -> ModelKey:
        """Begin with one key that has a scope and never expires."""
        return self.create(0, {"orders:*"}, None)

    @rule(target=keys, server=servers, granted=scopes, ttl=lives)
    def create(self, server: int, granted: set[str], ttl: int | None) -> ModelKey:
        """Create a key."""
        issued = self.servers[server].create(scopes=tuple(sorted(granted)), ttl=ttl)
        return self._add(issued.key.id, issued.text, granted, None if ttl is None else self.clock.now + ttl)

    @precondition(lambda self: self._standing())
    @rule(target=keys, choice=choices, server=servers, ends=endings)
    def replace(self, choice: int, server: int, ends: tuple[int, bool]) -> ModelKey | object:
        """Rotate one of the newest keys that can be rotated."""
        standing = self._standing()
        return self._rotate(server, standing[-1 - choice % len(standing)], *ends, ttl=None)

    @precondition(lambda self: self._unused())
    @rule(choice=choices, server=servers, at_once=st.booleans())
    def use(self, choice: int, server: int, at_once: bool) -> None:
        """Use a key whose first use ends others. The server notes it, and writes it at once, later or never."""
        unused = self._unused()
        key = unused[-1 - choice % len(unused)]
        self.settle()
        code = self.servers[server].verifier.verify(Question(key.text)).code
        assert code.name == key.verdict(self.clock.now, ())
        if code.name == "VALID":
            self.noted[server][key] = None
        if at_once:
            self.write(server)

    @precondition(lambda self: any(self.noted))
    @rule(server=servers)
    def write(self, server: int) -> None:
        """Make a server write the first uses that it has noted, even if the other has written some of them."""
        assert self.servers[server].first_uses.flush()
        for key in self.noted[server]:
            key.use(self.clock.now)
        self.noted[server].clear()

    @precondition(lambda self: any(self.noted))
    @rule(server=servers)
    def die(self, server: int) -> None:
        """Kill a server and restart it. The first uses that it has noted are lost until the next use."""
        self._begin_again(server)

    @rule(span=spans)
    def wait(self, span: int) -> None:
        """Let time pass."""
        self.clock.advance(span)

    @invariant()
    def every_verdict_is_the_models(self) -> None:
        """On both servers, every key's verdict is the model's, whatever scopes are required.

        An unused key is verified for scopes that it does not grant, so that it stays unused.
        """
        self.settle()
        for server in self.servers:
            for key in self.model:
                for required in (NOBODYS,) if key.unused else REQUIRED:
                    code = server.verifier.verify(Question(key.text, Demand(required_scopes=required))).code
                    assert code.name == key.verdict(self.clock.now, required)

    @invariant()
    def every_state_is_the_models(self) -> None:
        """Every key's state is the model's."""
        for key in self.model:
            found = self.servers[0].lifecycle.get(OPERATOR, key.id)
            assert found.key.state(found.now).name == key.state(self.clock.now)
            assert found.key.grace_ends_on_first_use == key.waits

    @invariant()
    def a_wrong_secret_is_not_found(self) -> None:
        """Whether or not a key is cached, a wrong secret is never accepted for it."""
        for key in self.model[-2:]:
            wrong = keyformat.build("tmb", key.id, "0" * keyformat.SECRET_LENGTH)
            assert self.servers[0].verifier.verify(Question(wrong)).code.name == "NOT_FOUND"

    def teardown(self) -> None:
        """At the end, the log has each key's events, and the audit finds nothing wrong."""
        store = self.servers[0].store
        assert audit.run(store).problems == ()
        told: dict[str, list[str]] = {}
        for key_id, number in store.read("SELECT key_id, type FROM event ORDER BY revision"):
            told.setdefault(key_id, []).append(log.EventType(number).name)
        assert told == {key.id: key.events for key in self.model}
        for server in set(self.servers):
            server.close()
            server.store.close()
        self._folder.cleanup()

    def _begun(self) -> Domain:
        return Domain(open_store(self._url, timeout=10 * MINUTE), self.clock)

    def _begin_again(self, server: int) -> None:
        ended = self.servers[server]
        ended.close()
        ended.store.close()
        begun = self._begun()
        self.servers = [begun if each is ended else each for each in self.servers]
        self.noted[server].clear()

    def _standing(self) -> list[ModelKey]:
        return [key for key in self.model if key.refusal(self.clock.now) is None]

    def _unused(self) -> list[ModelKey]:
        return [key for key in self.model if key.unused]

    def _rotate(self, server: int, key: ModelKey, grace: int, waits: bool, ttl: int | None) -> ModelKey | object:
        now = self.clock.now
        ends = OldKeyEnds.ON_FIRST_USE if waits else OldKeyEnds.AT_GRACE_END
        refusal = InvalidFields if waits and not grace else key.refusal(now)
        if refusal is not None:
            with pytest.raises(refusal):
                self.servers[server].rotate(key.id, grace=grace, old_key_ends=ends, ttl=ttl)
            return multiple()
        issued = self.servers[server].rotate(key.id, grace=grace, old_key_ends=ends, ttl=ttl)
        key.replaced, key.waits = True, waits
        key.grace_ends = now + grace if key.expires is None else min(now + grace, key.expires)
        key.events.append("ROTATED")
        if ttl is not None:
            expires: int | None = now + ttl
        else:
            expires = None if key.expires is None else now + key.expires - key.created
        successor = self._add(issued.key.id, issued.text, key.scopes, expires)
        successor.active, successor.replaces, successor.unused = key.active, key, waits or key.unused
        return successor

    def _changed(self, server: int, key: ModelKey, edit: Edit, differs: bool) -> bool:
        if key.revoked:
            with pytest.raises(KeyIsRevoked):
                self.servers[server].lifecycle.update(OPERATOR, edit)
            return False
        self.servers[server].lifecycle.update(OPERATOR, edit)
        if differs:
            key.events.append("UPDATED")
        return True

    def _add(self, key_id: str, text: str, granted: set[str], expires: int | None) -> ModelKey:
        key = ModelKey(key_id, text, self.clock.now, set(granted), expires)
        self.model.append(key)
        return key


class Lives(Lines):
    """Two servers, each of which also changes and revokes keys."""

    keys = Lines.keys

    @rule(server=servers, key=keys)
    def revoke(self, server: int, key: ModelKey) -> None:
        """Revoke a key. A second revocation changes nothing."""
        self.servers[server].revoke(key.id)
        if not key.revoked:
            key.events.append("REVOKED")
        key.revoked = True

    @rule(target=keys, server=servers, key=keys, grace=st.just(0) | spans, waits=st.booleans(), ttl=lives)
    def rotate(self, server: int, key: ModelKey, grace: int, waits: bool, ttl: int | None) -> ModelKey | object:
        """Rotate a key, unless it is revoked, rotated or expired. The successor inherits the key's properties.

        A key that ends at its successor's first use needs some grace.
        """
        return self._rotate(server, key, grace, waits, ttl)

    @rule(server=servers, key=keys, granted=scopes)
    def change_scopes(self, server: int, key: ModelKey, granted: set[str]) -> None:
        """Change a key's scopes. A revoked key cannot be changed."""
        # Sorted, since the order of sets varies, and a different order of scopes counts as a change.
        edit = Edit(key.id, Draft("", scopes=tuple(sorted(granted))), ("scopes",))
        if self._changed(server, key, edit, granted != key.scopes):
            key.scopes = set(granted)

    @rule(server=servers, key=keys, ttl=lives)
    def change_expiry(self, server: int, key: ModelKey, ttl: int | None) -> None:
        """Change or remove a key's expiry."""
        expires = None if ttl is None else self.clock.now + ttl
        edit = Edit(key.id, Draft("", expire_time=expires), ("expire_time",))
        if self._changed(server, key, edit, expires != key.expires):
            key.expires = expires

    @rule(server=servers, key=keys, active=st.booleans())
    def switch(self, server: int, key: ModelKey, active: bool) -> None:
        """Activate or deactivate a key."""
        if key.revoked:
            with pytest.raises(KeyIsRevoked):
                self.servers[server].lifecycle.set_active(OPERATOR, key.id, active)
            return
        self.servers[server].lifecycle.set_active(OPERATOR, key.id, active)
        if active != key.active:
            key.events.append("ACTIVATED" if active else "DEACTIVATED")
        key.active = active


class TestLines(Lines.TestCase):  # type: ignore[misc,name-defined]
    """Verdicts, states and the log match the model, however keys are replaced and used, and whichever server dies."""

    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


class TestLives(Lives.TestCase):  # type: ignore[misc,name-defined]
    """Verdicts, states and the log match the model, whatever happens to keys, in any order, on either server."""

    settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
