"""Creation, updates, activation and revocation of keys. For rotation see ``keys.rotation``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tumbler.decide import any_grants
from tumbler_server.clock import NEVER
from tumbler_server.errors import (
    NAMED,
    EtagMismatch,
    KeyIsRevoked,
    KeyNotFound,
    NameIsAmbiguous,
    ScopeMissing,
)
from tumbler_server.events.log import EventType
from tumbler_server.keys import access, differences, idempotency, ledger, record, schedule, widening
from tumbler_server.keys.differences import UPDATABLE
from tumbler_server.keys.idempotency import RequestId
from tumbler_server.keys.ledger import Issued, Ledger, Snapshot
from tumbler_server.keys.record import Key
from tumbler_server.keys.rules import Validation
from tumbler_server.store.database import Read, Transaction
from tumbler_server.webhooks.endpoints import Endpoints

_ROTATE = "tumbler:keys:rotate"


@dataclass(frozen=True)
class Draft:
    """The fields of a key to create; CreateRequest documents each. Durations and times are in microseconds."""

    project_id: str
    environment_id: str = ""
    name: str = ""
    owner_id: str = ""
    scopes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_cidrs: tuple[str, ...] = ()
    expire_time: int | None = None
    ttl: int | None = None
    prefix: str = ""
    rotation_interval: int | None = None
    webhook_url: str = ""
    request_id: RequestId = RequestId()
    validate_only: bool = False


@dataclass(frozen=True)
class Edit:
    """A change to a key. ``fields`` names the fields of ``draft`` to apply."""

    key_id: str
    draft: Draft
    fields: tuple[str, ...]
    etag: str = ""


class Lifecycle:
    """Creates and changes keys.

    ``caller`` is the key that made the call. Its scope for the operation has already been checked.
    """

    def __init__(
        self,
        ledger: Ledger,
        default_prefix: str,
        min_rotation_interval: int,
        endpoints: Endpoints,
    ) -> None:
        self._ledger = ledger
        self._endpoints = endpoints
        self._default_prefix = default_prefix
        self._min_rotation_interval = min_rotation_interval

    def get(self, caller: Key, key_id: str) -> Snapshot:
        """Return a key. Raises ``InvalidFields``, ``KeyNotFound``."""
        check = Validation()
        check.key_id("key_id", key_id)
        check.done()
        key = self._ledger.load(self._ledger.read, caller, key_id)
        return Snapshot(key, key.revision, self._ledger.clock())

    def create(self, caller: Key, draft: Draft) -> Issued:
        """Create a key.

        Raises ``InvalidFields``, ``OtherProject``, ``ScopeEscalation``, ``RequestIdReused``, ``WebhooksNeedPepper``,
        ``LimitReached``, ``Overloaded``.
        """
        check = Validation()
        check.project("project_id", draft.project_id)
        check.filter("environment_id", draft.environment_id)
        prefix = check.prefix("prefix", draft.prefix, self._default_prefix)
        check.ttl("ttl", draft.ttl)
        check.request_id("request_id", draft.request_id.value)
        values = self._checked(check, draft, "")
        check.done()
        access.enter(caller, draft.project_id)
        access.hand_out(caller, values["scopes"])
        if draft.webhook_url:
            self._endpoints.demand_pepper()

        if not draft.validate_only and (seen := idempotency.find(self._ledger.select, caller, draft.request_id)):
            return self._ledger.repeated(self._ledger.read, caller, seen)
        key = self._drafted(caller, draft, values)
        if draft.webhook_url:
            self._endpoints.demand_room(self._ledger.select, draft.project_id, draft.webhook_url)
            self._look_up("rotation.webhook_url", caller, draft.webhook_url)
        if draft.validate_only:
            return Issued(key, 0, key.create_time)
        return self._issue(caller, draft, values, prefix)

    def update(self, caller: Key, edit: Edit) -> Snapshot:
        """Change fields of a key.

        Raises ``InvalidFields``, ``KeyNotFound``, ``KeyIsRevoked``, ``EtagMismatch``, ``ScopeEscalation``,
        ``SelfWidening``, ``ScopeMissing``, ``WebhooksNeedPepper``, ``LimitReached``, ``Overloaded``.
        """
        check = Validation()
        check.key_id("api_key.id", edit.key_id)
        if not edit.fields:
            check.fail("update_mask", f"must name at least one of {', '.join(UPDATABLE)}")
        for number, name in enumerate(edit.fields):
            if name not in UPDATABLE:
                check.fail(f"update_mask.paths[{number}]", f"must be one of {', '.join(UPDATABLE)}")
        values = self._checked(check, edit.draft, "api_key.")
        self._demand_future(check, edit, self._ledger.clock())
        if edit.draft.webhook_url:
            self._endpoints.demand_pepper()

        if edit.draft.webhook_url and "rotation" in edit.fields:
            # Refuse before the DNS lookup everything that the transaction would refuse.
            before, after = self._edited(self._ledger, caller, edit, values, self._ledger.clock())
            if after.webhook_url != before.webhook_url:
                self._endpoints.demand_room(self._ledger.select, after.project_id, after.webhook_url)
                self._look_up("api_key.rotation.webhook_url", caller, after.webhook_url)

        def work(transaction: Transaction) -> Snapshot:
            now = self._ledger.clock()
            self._demand_future(check, edit, now)
            before, after = self._edited(transaction, caller, edit, values, now)
            webhook_secret = ""
            if "rotation" in edit.fields and after.webhook_url:
                webhook_secret = self._endpoints.open(transaction, after.project_id, after.webhook_url, now)
            detail = differences.between(before, after)
            if not detail and self._ledger.intact(transaction.read, before.id):
                return Snapshot(before, before.revision, now, webhook_secret)
            if record.weight(after) > record.weight(before):  # a record that is already too large may shrink
                check.record("api_key.", after)
                check.done()
            changed = self._ledger.save(
                transaction, ledger.actor(caller), before, after, EventType.UPDATED, now, detail
            )
            return replace(changed, webhook_secret=webhook_secret)

        return self._ledger.write(work)

    def set_active(self, caller: Key, key_id: str, active: bool) -> Snapshot:
        """Activate or deactivate a key. Does nothing if the key is already in that state.

        Raises ``InvalidFields``, ``KeyNotFound``, ``KeyIsRevoked``.
        Activation also raises ``ScopeEscalation`` and ``SelfWidening``.
        """
        check = Validation()
        check.key_id("key_id", key_id)
        check.done()
        return self._ledger.write(
            lambda transaction: self._switch(transaction, caller, key_id, active), urgent=not active
        )

    def set_active_by_name(
        self, caller: Key, project_id: str, environment_id: str, name: str, active: bool
    ) -> Snapshot:
        """Do as ``set_active`` does, for the key with a name. Also raises ``OtherProject``, ``NameIsAmbiguous``."""
        check = Validation()
        check.filter("by_name.project_id", project_id)
        check.filter("by_name.environment_id", environment_id)
        if not name:
            check.fail("by_name.name", "is required")
        check.text("by_name.name", name, 255)
        check.done()
        if project_id:
            access.enter(caller, project_id)

        def work(transaction: Transaction) -> Snapshot:
            fitting = _named(transaction, project_id or caller.project_id, environment_id, name, self._ledger.clock())
            if not fitting:
                raise KeyNotFound
            if len(fitting) > 1:
                raise NameIsAmbiguous(fitting)
            return self._switch(transaction, caller, fitting[0], active)

        return self._ledger.write(work, urgent=not active)

    def revoke(self, caller: Key, key_id: str, reason: int, comment: str) -> Snapshot:
        """Revoke a key permanently. Revoking it again changes nothing. Raises ``InvalidFields``, ``KeyNotFound``."""
        check = Validation()
        check.key_id("key_id", key_id)
        check.text("comment", comment, 1_024)
        if reason not in record.REVOKE_REASONS:
            check.fail("reason", "must be one of the named reasons")
        check.done()

        def work(transaction: Transaction) -> Snapshot:
            now = self._ledger.clock()
            before = self._ledger.load(transaction.read, caller, key_id)
            if before.revoked and self._ledger.intact(transaction.read, before.id):
                return Snapshot(before, before.revision, now)
            return self._ledger.revoke(transaction, ledger.actor(caller), before, reason, comment, now)

        return self._ledger.write(work, urgent=True)

    def _demand_future(self, check: Validation, edit: Edit, now: int) -> None:
        if "expire_time" in edit.fields:
            check.in_future("api_key.expire_time", edit.draft.expire_time, now)
        check.done()

    def _edited(
        self, on: Ledger | Transaction, caller: Key, edit: Edit, values: Mapping[str, Any], now: int
    ) -> tuple[Key, Key]:
        """Return a key before and after an edit. Raise if the edit is refused."""
        before = self._changeable(on.read, caller, edit.key_id)
        if edit.etag and edit.etag != before.etag:
            raise EtagMismatch(before.id)
        wanted = {name: values[name] for name in edit.fields if name in values}
        after = replace(before, **wanted)
        if "expire_time" in edit.fields and edit.draft.expire_time != before.expire_time:
            expire_time = NEVER if edit.draft.expire_time is None else edit.draft.expire_time
            warnings = schedule.given_warnings(expire_time, now)
            after = replace(after, expire_time=expire_time, expiry_warnings=warnings)
        if "rotation" in edit.fields:
            after = _rescheduled(after, values["rotation_interval"], edit.draft.webhook_url, now)
            turned = after.webhook_url not in ("", before.webhook_url)
            if turned and not any_grants(caller.scopes, _ROTATE):  # the webhook's receiver can claim the next secret
                raise ScopeMissing(_ROTATE)
        widening.let(caller, before, after, on.read)
        return before, after

    def _look_up(self, field: str, caller: Key, url: str) -> None:
        """Check where a webhook's URL leads now.

        The lookup can take a second, so call this after all other checks and never in a transaction.
        """
        check = Validation()
        check.webhook(field, url, lambda url: self._endpoints.judge.look_up(url, caller.project_id))
        check.done()

    def _drafted(self, caller: Key, draft: Draft, values: Mapping[str, Any]) -> Key:
        """Return the key that a draft describes, created now. Raises ``InvalidFields``."""
        now = self._ledger.clock()
        check = Validation()
        check.in_future("expire_time", draft.expire_time, now)
        check.done()
        expire_time = ledger.expiry(draft.expire_time, draft.ttl, now, otherwise=NEVER)
        key = Key(
            id="",
            project_id=draft.project_id,
            environment_id=draft.environment_id,
            create_time=now,
            created_by=ledger.actor(caller),
            update_time=now,
            expire_time=expire_time,
            rotation_next_time=schedule.next_rotation(values["rotation_interval"], now),
            expiry_warnings=schedule.given_warnings(expire_time, now),
            **values,
        )
        check.record("", key)
        check.done()
        return key

    def _issue(self, caller: Key, draft: Draft, values: Mapping[str, Any], prefix: str) -> Issued:
        made, hashed = self._ledger.make(prefix)

        def work(transaction: Transaction) -> Issued:
            request_id = draft.request_id
            if seen := idempotency.find(transaction.select, caller, request_id):
                return self._ledger.repeated(transaction.read, caller, seen)
            key = self._drafted(caller, draft, values)
            now = key.create_time
            issued = self._ledger.insert(transaction, key, made, hashed, {})
            opened = self._endpoints.open(transaction, key.project_id, key.webhook_url, now) if key.webhook_url else ""
            idempotency.remember(transaction, caller, request_id, issued.id, issued.revision, now)
            return Issued(issued, issued.revision, now, opened, text=made.text)

        return self._ledger.write(work)

    def _checked(self, check: Validation, draft: Draft, path: str) -> dict[str, Any]:
        """Check the fields that Create and Update share, and return their stored form."""
        return {
            "name": check.name(f"{path}name", draft.name),
            "owner_id": check.text(f"{path}owner_id", draft.owner_id, 255),
            "scopes": check.granted_scopes(f"{path}scopes", draft.scopes),
            "metadata": check.metadata(f"{path}metadata", draft.metadata),
            "allowed_cidrs": check.cidrs(f"{path}allowed_cidrs", draft.allowed_cidrs),
            "rotation_interval": check.rotation(
                f"{path}rotation", draft.rotation_interval, self._min_rotation_interval
            ),
            "webhook_url": check.webhook(f"{path}rotation.webhook_url", draft.webhook_url, self._endpoints.judge.form),
        }

    def _changeable(self, read: Read, caller: Key, key_id: str) -> Key:
        key = self._ledger.load(read, caller, key_id)
        if key.revoked:
            raise KeyIsRevoked(key.id)
        return key

    def _switch(self, transaction: Transaction, caller: Key, key_id: str, active: bool) -> Snapshot:
        now = self._ledger.clock()
        before = self._changeable(transaction.read, caller, key_id)
        if before.active == active and self._ledger.intact(transaction.read, before.id):
            return Snapshot(before, before.revision, now)
        happened = EventType.ACTIVATED if active else EventType.DEACTIVATED
        # A due rotation is announced again when the key is reactivated. Outstanding claim tokens become void.
        after = replace(before, active=active, rotation_due_revision=0)
        widening.let(caller, before, after, transaction.read)
        return self._ledger.save(transaction, ledger.actor(caller), before, after, happened, now, {})


def _named(transaction: Transaction, project_id: str, environment_id: str, name: str, now: int) -> list[str]:
    """Return the ids of the keys with a name, at most ``NAMED``: those that can still work, or else the others.

    Any number of keys can share a name, and all writers wait for this query.
    So it reads ranges of one index (see ``keys.finder``).
    """
    columns = ("project_id", "environment_id", "name", "revoke_time", "grace_expire_time")
    whole = (project_id, environment_id, name)
    for begin in ((*whole, NEVER, now + 1), whole):
        rows = transaction.read(
            f"SELECT id FROM api_key WHERE ({', '.join(columns[: len(begin)])}) >= ({', '.join('?' * len(begin))}) "  # noqa: S608
            f"AND (project_id, environment_id, name) <= (?, ?, ?) ORDER BY {', '.join(columns)}, id LIMIT {NAMED}",
            (*begin, *whole),
        )
        if rows:
            return sorted(key_id for (key_id,) in rows)
    return []


def _rescheduled(key: Key, interval: int, webhook_url: str, now: int) -> Key:
    """Return the key with this schedule. A changed interval or URL causes a due rotation to be announced again."""
    if interval != key.rotation_interval:
        next_time = schedule.next_rotation(interval, now)
        key = replace(key, rotation_interval=interval, rotation_next_time=next_time)
        key = replace(key, rotation_due_revision=0, rotation_overdue=False)
    if webhook_url != key.webhook_url:
        key = replace(key, webhook_url=webhook_url, rotation_due_revision=0)
    return key
