"""Reads and writes of keys. Each change and its event are written in one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tumbler_server import calls, limits
from tumbler_server.clock import Clock
from tumbler_server.errors import KeyNotFound
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys import access, differences, evidence, idempotency, projects, record, schedule
from tumbler_server.keys.record import Key
from tumbler_server.secrets import secret
from tumbler_server.secrets.secret import Hasher, NewKey
from tumbler_server.store.database import Read, Select, Store, Transaction
from tumbler_server.store.models import ApiKeyRow


@dataclass(frozen=True)
class Snapshot:
    """A key as of ``now``, and the revision of the log that it shows.

    ``webhook_secret`` is the secret of an endpoint that this call created. It is shown once.
    """

    key: Key
    revision: int
    now: int
    webhook_secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Issued(Snapshot):
    """A created key. ``text`` is the key itself, shown once. It is empty if ``repeated`` or if only validated."""

    text: str = field(default="", repr=False)
    repeated: bool = False
    old: Key | None = None


Outcome = TypeVar("Outcome", bound=Snapshot)


class Ledger:
    """Reads and writes keys. A project has at most ``max_project_keys`` keys.

    ``committed`` is called before a change is reported to its caller, with its revision, and with revision and hash of
    each event that it has appended.
    """

    def __init__(
        self,
        store: Store,
        hasher: Hasher,
        clock: Clock,
        committed: Callable[[int, Sequence[tuple[int, bytes]]], None],
        max_project_keys: int = limits.PROJECT_KEYS.most,
    ) -> None:
        self.clock = clock
        self.select: Select = store.select
        self.read = store.read
        self._store = store
        self._hasher = hasher
        self._committed = committed
        self._max_project_keys = max_project_keys

    def write(self, work: Callable[[Transaction], Outcome], urgent: bool = False) -> Outcome:
        """Run ``work`` in a write transaction, and return its outcome after calling ``committed``.

        An ``urgent`` write, one that stops a key, goes ahead of all other queued writes.
        """
        outcome, appended = self._store.write_serialized(
            lambda transaction: (work(transaction), transaction.appended), urgent
        )
        with calls.serving(None):  # the change is committed: publish it even if its caller has hung up
            self._committed(outcome.revision, appended)
        return outcome

    def make(self, prefix: str) -> tuple[NewKey, secret.HashedSecret]:
        """Generate and hash a secret. Call it outside a transaction: bcrypt must not hold the write lock."""
        made = secret.generate(prefix)
        return made, self._hasher.hash(made.text, made.secret)

    def find(self, read: Read, key_id: str) -> Key | None:
        """Return the key with this id, or None. Does not check who may see it."""
        return record.find(read, key_id)

    def intact(self, read: Read, key_id: str) -> bool:
        """Return whether a key's row is as its last event says."""
        return evidence.intact(read, key_id)

    def load(self, read: Read, caller: Key, key_id: str) -> Key:
        """Return a key that the caller may see. Raises ``KeyNotFound``."""
        key = self.find(read, key_id)
        if key is None or not access.sees(caller, key.project_id):
            raise KeyNotFound(key_id)
        return key

    def insert(
        self, transaction: Transaction, key: Key, made: NewKey, hashed: secret.HashedSecret, detail: Mapping[str, str]
    ) -> Key:
        """Insert a new key with its CREATED event, and return the key as stored. Raises ``LimitReached``."""
        projects.count_one_more(transaction, key.project_id, self._max_project_keys)
        key = replace(key, id=made.id, key_prefix=made.key_prefix)
        proofs = {"secret_hash": hashed.secret_hash, "digest": hashed.digest, "pepper_id": hashed.pepper_id}
        columns = record.to_columns(key) | proofs
        happened = change(EventType.CREATED, key, key.create_time, key.created_by, {**differences.made(key), **detail})
        revision = log.append(transaction, replace(happened, record=evidence.digest(columns)))
        alarm_time = schedule.alarm_time(key, key.create_time)
        transaction.run(ApiKeyRow.insert(**columns | {"revision": revision, "alarm_time": alarm_time}))
        return replace(key, revision=revision)

    def save(
        self,
        transaction: Transaction,
        actor: Actor,
        before: Key,
        after: Key,
        happened: EventType,
        now: int,
        detail: Mapping[str, str],
    ) -> Snapshot:
        """Write the changed columns of a key with an event, and return the key after the change.

        If the key's row does not match its last event, the new event says so.
        """
        after = replace(after, update_time=now)
        old = record.to_columns(before)
        columns = {name: value for name, value in record.to_columns(after).items() if value != old[name]}
        ((row, altered),) = evidence.stored(transaction.read, [before.id]).values()
        told = change(happened, before, now, actor, {**detail, **evidence.altered(altered)})
        told = replace(told, record=evidence.digest(row | columns), previous=before.revision)
        after = replace(after, revision=log.append(transaction, told))
        columns |= {"revision": after.revision, "alarm_time": schedule.alarm_time(after, now)}
        transaction.run(ApiKeyRow.update(**columns).where(ApiKeyRow.id == before.id))
        return Snapshot(after, after.revision, now)

    def note(self, transaction: Transaction, actor: Actor, key: Key, happened: EventType, now: int) -> Key:
        """Write an event that changes no field of a key, and return the key with its new revision."""
        ((row, altered),) = evidence.stored(transaction.read, [key.id]).values()
        told = change(happened, key, now, actor, evidence.altered(altered))
        revision = log.append(transaction, replace(told, record=evidence.digest(row), previous=key.revision))
        transaction.run(ApiKeyRow.update(revision=revision).where(ApiKeyRow.id == key.id))
        return replace(key, revision=revision)

    def revoke(
        self, transaction: Transaction, actor: Actor, before: Key, reason: int, comment: str, now: int
    ) -> Snapshot:
        """Revoke a key permanently and write its event. The key must not be revoked yet, unless that was by hand."""
        after = replace(before, revoke_time=now, revoke_reason=reason, revoke_comment=comment)
        detail = {"reason": record.REVOKE_REASONS[reason]} | ({"comment": comment} if comment else {})
        return self.save(transaction, actor, before, after, EventType.REVOKED, now, detail)

    def repeated(self, read: Read, caller: Key, seen: idempotency.Seen) -> Issued:
        """Return the outcome of a replayed request, without the secret."""
        key = self.load(read, caller, seen.key_id)
        old = self.load(read, caller, key.replaces_key_id) if seen.rotated else None
        return Issued(key, seen.revision, self.clock(), repeated=True, old=old)


def actor(caller: Key) -> Actor:
    """Return the caller as the actor of a change."""
    return Actor(caller.id, caller.name)


def change(happened: EventType, key: Key, now: int, actor: Actor, detail: Mapping[str, str]) -> Change:
    """Return the event for a key's change."""
    return Change(
        type=happened,
        key_id=key.id,
        project_id=key.project_id,
        environment_id=key.environment_id,
        time=now,
        actor=actor,
        detail=detail,
    )


def expiry(expire_time: int | None, ttl: int | None, now: int, otherwise: int) -> int:
    """Return a key's expiry from ``expire_time`` or ``ttl``, or ``otherwise`` if neither is given."""
    if expire_time is not None:
        return expire_time
    return otherwise if ttl is None else now + ttl
