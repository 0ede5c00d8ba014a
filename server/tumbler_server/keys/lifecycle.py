"""A key's life: made, changed, switched, revoked, rotated. Each change and its event are one transaction."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tumbler.decide import any_grants
from tumbler_server.clock import END, HOUR, NEVER, Clock, rfc3339
from tumbler_server.errors import (
    ClaimOutdated,
    EtagMismatch,
    KeyIsExpired,
    KeyIsRevoked,
    KeyIsSuperseded,
    KeyNotFound,
    NameIsAmbiguous,
    ScopeMissing,
)
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys import access, record, requests, schedule, secret
from tumbler_server.keys.claims import Claims
from tumbler_server.keys.record import Key
from tumbler_server.keys.requests import RequestId
from tumbler_server.keys.rules import Check
from tumbler_server.keys.secret import Hasher, NewKey
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow
from tumbler_server.webhooks.endpoints import Endpoints

DEFAULT_GRACE = HOUR

UPDATABLE = ("name", "owner_id", "scopes", "metadata", "allowed_cidrs", "expire_time", "rotation")

CLAIM = Actor("", "claim")
"""Who replaces a key by a claim token, which names nobody."""

_ROTATE = "tumbler:keys:rotate"


@dataclass(frozen=True)
class Draft:
    """What a key is to be; see CreateRequest for each field. Spans and instants are microseconds."""

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
    """What is to be changed of a key; ``fields`` names those of ``draft`` that count."""

    key_id: str
    draft: Draft
    fields: tuple[str, ...]
    etag: str = ""


@dataclass(frozen=True)
class Rotation:
    """How a key is to be replaced; see RotateRequest."""

    key_id: str
    grace: int = DEFAULT_GRACE
    expire_time: int | None = None
    ttl: int | None = None
    request_id: RequestId = RequestId()


@dataclass(frozen=True)
class Changed:
    """A key as it became by ``now``, and the revision of its change.

    ``webhook_secret`` is that of an endpoint that was made with it, shown once.
    """

    key: Key
    revision: int
    now: int
    webhook_secret: str = field(default="", repr=False)


@dataclass(frozen=True)
class Issued(Changed):
    """A key that was made. ``text`` is the key itself, shown once; empty where ``repeated`` or only validated."""

    text: str = field(default="", repr=False)
    repeated: bool = False
    old: Key | None = None


Outcome = TypeVar("Outcome", bound=Changed)


class Lifecycle:
    """Changes keys. A caller is the key that asks; its scope for the operation has been checked before.

    ``committed`` is told the revision of each change before its maker is.
    """

    def __init__(
        self,
        store: Store,
        hasher: Hasher,
        clock: Clock,
        default_prefix: str,
        min_rotation_interval: int,
        committed: Callable[[int], None],
        claims: Claims,
        endpoints: Endpoints,
    ) -> None:
        self._store = store
        self._claims = claims
        self._endpoints = endpoints
        self._committed = committed
        self._hasher = hasher
        self._clock = clock
        self._default_prefix = default_prefix
        self._min_rotation_interval = min_rotation_interval

    def get(self, caller: Key, key_id: str) -> Changed:
        """Return a key as it is. Raises ``KeyNotFound``."""
        check = Check()
        check.key_id("key_id", key_id)
        check.done()
        key = self._load(self._store.select, caller, key_id)
        return Changed(key, key.revision, self._clock())

    def create(self, caller: Key, draft: Draft) -> Issued:
        """Make a key.

        Raises ``InvalidFields``, ``OtherProject``, ``ScopeEscalation``, ``RequestIdReused``, ``WebhooksNeedPepper``.
        """
        check = Check()
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

        if not draft.validate_only and (seen := requests.find(self._store.select, caller, draft.request_id)):
            return self._repeated(self._store.select, caller, seen)
        now = self._clock()
        check.in_future("expire_time", draft.expire_time, now)
        check.done()

        expire_time = _expiry(draft.expire_time, draft.ttl, now, otherwise=NEVER)
        key = Key(
            id="",
            project_id=draft.project_id,
            environment_id=draft.environment_id,
            create_time=now,
            created_by=_actor(caller),
            update_time=now,
            expire_time=expire_time,
            rotation_next_time=schedule.next_rotation(values["rotation_interval"], now),
            expiry_warnings=schedule.given_warnings(expire_time, now),
            **values,
        )
        if draft.validate_only:
            return Issued(key, 0, now)
        return self._issue(caller, key, prefix, draft.request_id)

    def update(self, caller: Key, edit: Edit) -> Changed:
        """Change fields of a key.

        Raises ``InvalidFields``, ``KeyNotFound``, ``KeyIsRevoked``, ``EtagMismatch``, ``ScopeEscalation``,
        ``ScopeMissing``, ``WebhooksNeedPepper``.
        """
        now = self._clock()
        check = Check()
        check.key_id("api_key.id", edit.key_id)
        if not edit.fields:
            check.fail("update_mask", f"must name at least one of {', '.join(UPDATABLE)}")
        for number, name in enumerate(edit.fields):
            if name not in UPDATABLE:
                check.fail(f"update_mask.paths[{number}]", f"must be one of {', '.join(UPDATABLE)}")
        values = self._checked(check, edit.draft, "api_key.")
        if "expire_time" in edit.fields:
            check.in_future("api_key.expire_time", edit.draft.expire_time, now)
        check.done()
        if edit.draft.webhook_url:
            self._endpoints.demand_pepper()

        def work(transaction: Transaction) -> Changed:
            before = self._changeable(transaction, caller, edit.key_id)
            if edit.etag and edit.etag != before.etag:
                raise EtagMismatch(before.id)
            wanted = {name: value for name, value in values.items() if name in edit.fields}
            if "scopes" in wanted:
                access.hand_out(caller, tuple(scope for scope in wanted["scopes"] if scope not in before.scopes))
            after = replace(before, **wanted)
            if "expire_time" in edit.fields and edit.draft.expire_time != before.expire_time:
                expire_time = NEVER if edit.draft.expire_time is None else edit.draft.expire_time
                warnings = schedule.given_warnings(expire_time, now)
                after = replace(after, expire_time=expire_time, expiry_warnings=warnings)
            webhook_secret = ""
            if "rotation" in edit.fields:
                after = _rescheduled(after, values["rotation_interval"], edit.draft.webhook_url, now)
                if after.webhook_url:
                    self._let_set_webhook(caller, before, after)
                    webhook_secret = self._endpoints.open(transaction, after.project_id, after.webhook_url, now)
            detail = _difference(before, after)
            if not detail:
                return Changed(before, before.revision, now, webhook_secret)
            changed = self._save(transaction, _actor(caller), before, after, EventType.UPDATED, now, detail)
            return replace(changed, webhook_secret=webhook_secret)

        return self._write(work)

    def set_active(self, caller: Key, key_id: str, active: bool) -> Changed:
        """Switch a key on or off; where it is so already, nothing changes. Raises ``KeyNotFound``, ``KeyIsRevoked``."""
        check = Check()
        check.key_id("key_id", key_id)
        check.done()
        return self._write(lambda transaction: self._switch(transaction, caller, key_id, active))

    def set_active_by_name(self, caller: Key, project_id: str, environment_id: str, name: str, active: bool) -> Changed:
        """Do the same to the one key of this name. Raises also ``OtherProject``, ``NameIsAmbiguous``."""
        check = Check()
        check.filter("by_name.project_id", project_id)
        check.filter("by_name.environment_id", environment_id)
        if not name:
            check.fail("by_name.name", "is required")
        check.text("by_name.name", name, 255)
        check.done()
        if project_id:
            access.enter(caller, project_id)

        def work(transaction: Transaction) -> Changed:
            rows = transaction.select(
                ApiKeyRow.select().where(
                    (ApiKeyRow.project_id == (project_id or caller.project_id))
                    & (ApiKeyRow.environment_id == environment_id)
                    & (ApiKeyRow.name == name)
                )
            )
            named = sorted(map(record.from_row, rows), key=lambda key: key.id)
            now = self._clock()
            living = [key for key in named if not key.revoked and now < key.grace_expire_time]
            fitting = living or named
            if not fitting:
                raise KeyNotFound
            if len(fitting) > 1:
                raise NameIsAmbiguous([key.id for key in fitting])
            return self._switch(transaction, caller, fitting[0].id, active)

        return self._write(work)

    def revoke(self, caller: Key, key_id: str, reason: int, comment: str) -> Changed:
        """End a key for ever; a second time changes nothing. Raises ``InvalidFields``, ``KeyNotFound``."""
        check = Check()
        check.key_id("key_id", key_id)
        check.text("comment", comment, 1_024)
        if reason not in record.REVOKE_REASONS:
            check.fail("reason", "must be one of the named reasons")
        check.done()

        def work(transaction: Transaction) -> Changed:
            now = self._clock()
            before = self._load(transaction.select, caller, key_id)
            if before.revoked:
                return Changed(before, before.revision, now)
            after = replace(before, revoke_time=now, revoke_reason=reason, revoke_comment=comment)
            detail = {"reason": record.REVOKE_REASONS[reason]} | ({"comment": comment} if comment else {})
            return self._save(transaction, _actor(caller), before, after, EventType.REVOKED, now, detail)

        return self._write(work)

    def rotate(self, caller: Key, rotation: Rotation) -> Issued:
        """Replace a key by a successor that carries over everything, and let the old one work for a grace period.

        Raises ``InvalidFields``, ``KeyNotFound``, ``KeyIsRevoked``, ``KeyIsSuperseded``, ``KeyIsExpired``,
        ``ScopeEscalation``, ``RequestIdReused``.
        """
        check = Check()
        check.key_id("key_id", rotation.key_id)
        check.grace("grace_period", rotation.grace)
        check.ttl("ttl", rotation.ttl)
        check.request_id("request_id", rotation.request_id.value)
        check.done()
        # Read before the request is looked for: whatever ended the key by then is not this very request, repeated.
        old = self._load(self._store.select, caller, rotation.key_id)
        if seen := requests.find(self._store.select, caller, rotation.request_id):
            return self._repeated(self._store.select, caller, seen)
        check.in_future("expire_time", rotation.expire_time, self._clock())
        check.done()
        self._demand_rotatable(old)
        made, sealed = self._make(old.key_prefix.removesuffix(f"_{old.id}_"))

        def work(transaction: Transaction) -> Issued:
            if seen := requests.find(transaction.select, caller, rotation.request_id):
                return self._repeated(transaction.select, caller, seen)
            now = self._clock()
            before = self._load(transaction.select, caller, rotation.key_id)
            self._demand_rotatable(before)
            # The caller is handed the successor's secret, and with it whatever the key may do to this service.
            access.hand_out(caller, before.scopes)
            issued = self._replace(transaction, _actor(caller), before, rotation, made, sealed, now)
            requests.remember(
                transaction, caller, rotation.request_id, issued.key.id, issued.revision, now, rotated=True
            )
            return issued

        return self._write(work)

    def claim(self, token: str, grace: int) -> Issued:
        """Replace a key whose rotation is due, for whoever holds the token that was made for that.

        Raises ``InvalidFields``, ``ClaimTokenInvalid``, ``ClaimOutdated``, ``KeyIsRevoked``, ``KeyIsSuperseded``,
        ``KeyIsExpired``.
        """
        check = Check()
        check.grace("grace_period", grace)
        check.done()
        key_id, due_revision = self._claims.read(token)
        old = self._claimable(self._store.select, key_id, due_revision)
        made, sealed = self._make(old.key_prefix.removesuffix(f"_{old.id}_"))

        def work(transaction: Transaction) -> Issued:
            now = self._clock()
            before = self._claimable(transaction.select, key_id, due_revision)
            log.append(transaction, _change(EventType.ROTATION_CLAIMED, before, now, CLAIM, {}))
            return self._replace(transaction, CLAIM, before, Rotation(key_id, grace), made, sealed, now)

        return self._write(work)

    def _replace(
        self,
        transaction: Transaction,
        actor: Actor,
        before: Key,
        rotation: Rotation,
        made: NewKey,
        sealed: record.Sealed,
        now: int,
    ) -> Issued:
        lifetime = NEVER if before.expire_time == NEVER else min(now + before.expire_time - before.create_time, END)
        expire_time = _expiry(rotation.expire_time, rotation.ttl, now, otherwise=lifetime)
        successor = replace(
            before,
            create_time=now,
            created_by=actor,
            update_time=now,
            expire_time=expire_time,
            last_used_time=0,
            replaces_key_id=before.id,
            rotation_next_time=schedule.next_rotation(before.rotation_interval, now),
            rotation_due_revision=0,
            rotation_overdue=False,
            expiry_warnings=schedule.given_warnings(expire_time, now),
        )
        successor = self._insert(transaction, successor, made, sealed, {"replaces_key_id": before.id})
        after = replace(
            before,
            replaced_by_key_id=successor.id,
            grace_expire_time=min(now + rotation.grace, before.expire_time),
            rotation_next_time=NEVER,
        )
        detail = {
            "replaced_by_key_id": successor.id,
            "grace_expire_time": rfc3339(after.grace_expire_time),
        }
        ended = self._save(transaction, actor, before, after, EventType.ROTATED, now, detail)
        return Issued(successor, ended.revision, now, text=made.text, old=ended.key)

    def _claimable(self, select: requests.Select, key_id: str, due_revision: int) -> Key:
        rows = select(ApiKeyRow.select().where(ApiKeyRow.id == key_id))
        if not rows:  # the database was restored from a backup that is older than the key
            raise ClaimOutdated(key_id)
        key = record.from_row(rows[0])
        self._demand_rotatable(key)
        if not key.active or key.rotation_due_revision != due_revision:
            raise ClaimOutdated(key_id)
        return key

    def _let_set_webhook(self, caller: Key, before: Key, after: Key) -> None:
        """Refuse a new URL to who may not rotate the key: whoever reads there can claim the next secret."""
        if after.webhook_url == before.webhook_url:
            return
        if not any_grants(caller.scopes, _ROTATE):
            raise ScopeMissing(_ROTATE)
        access.hand_out(caller, after.scopes)

    def _issue(self, caller: Key, key: Key, prefix: str, request_id: RequestId) -> Issued:
        made, sealed = self._make(prefix)

        def work(transaction: Transaction) -> Issued:
            if seen := requests.find(transaction.select, caller, request_id):
                return self._repeated(transaction.select, caller, seen)
            now = key.create_time
            issued = self._insert(transaction, key, made, sealed, {})
            opened = self._endpoints.open(transaction, key.project_id, key.webhook_url, now) if key.webhook_url else ""
            requests.remember(transaction, caller, request_id, issued.id, issued.revision, now)
            return Issued(issued, issued.revision, now, opened, text=made.text)

        return self._write(work)

    def _write(self, work: Callable[[Transaction], Outcome]) -> Outcome:
        outcome = self._store.write(work)
        self._committed(outcome.revision)
        return outcome

    def _make(self, prefix: str) -> tuple[NewKey, record.Sealed]:
        """Make and seal a secret, before any transaction: bcrypt must not hold the write lock."""
        made = secret.generate(prefix)
        return made, self._hasher.seal(made.text, made.secret)

    def _checked(self, check: Check, draft: Draft, path: str) -> dict[str, Any]:
        """Check the fields that Create and Update share, and return them as they are stored."""
        return {
            "name": check.name(f"{path}name", draft.name),
            "owner_id": check.text(f"{path}owner_id", draft.owner_id, 255),
            "scopes": check.granted_scopes(f"{path}scopes", draft.scopes),
            "metadata": check.metadata(f"{path}metadata", draft.metadata),
            "allowed_cidrs": check.cidrs(f"{path}allowed_cidrs", draft.allowed_cidrs),
            "rotation_interval": check.rotation(
                f"{path}rotation", draft.rotation_interval, self._min_rotation_interval
            ),
            # A name is looked up for this, which can take seconds: never inside a transaction.
            "webhook_url": check.webhook(f"{path}rotation.webhook_url", draft.webhook_url, self._endpoints.judge),
        }

    def _load(self, select: requests.Select, caller: Key, key_id: str) -> Key:
        rows = select(ApiKeyRow.select().where(ApiKeyRow.id == key_id))
        key = record.from_row(rows[0]) if rows else None
        if key is None or not access.sees(caller, key.project_id):
            raise KeyNotFound(key_id)
        return key

    def _changeable(self, transaction: Transaction, caller: Key, key_id: str) -> Key:
        key = self._load(transaction.select, caller, key_id)
        if key.revoked:
            raise KeyIsRevoked(key.id)
        return key

    def _demand_rotatable(self, key: Key) -> None:
        if key.revoked:
            raise KeyIsRevoked(key.id)
        if key.replaced_by_key_id:
            raise KeyIsSuperseded(key.id, key.replaced_by_key_id)
        if self._clock() >= key.expire_time:
            raise KeyIsExpired(key.id)

    def _switch(self, transaction: Transaction, caller: Key, key_id: str, active: bool) -> Changed:
        now = self._clock()
        before = self._changeable(transaction, caller, key_id)
        if before.active == active:
            return Changed(before, before.revision, now)
        happened = EventType.ACTIVATED if active else EventType.DEACTIVATED
        # What was due is announced again once the key is back; the claim tokens that are out count no more.
        after = replace(before, active=active, rotation_due_revision=0)
        return self._save(transaction, _actor(caller), before, after, happened, now, {})

    def _insert(
        self, transaction: Transaction, key: Key, made: NewKey, sealed: record.Sealed, detail: Mapping[str, str]
    ) -> Key:
        key = replace(key, id=made.id, key_prefix=made.key_prefix)
        revision = log.append(transaction, _change(EventType.CREATED, key, key.create_time, key.created_by, detail))
        key = replace(key, revision=revision)
        proofs = {"secret_hash": sealed.secret_hash, "digest": sealed.digest, "pepper_id": sealed.pepper_id}
        alarm_time = schedule.alarm_time(key, key.create_time)
        transaction.run(ApiKeyRow.insert(**record.to_columns(key), **proofs, alarm_time=alarm_time))
        return key

    def _save(
        self,
        transaction: Transaction,
        actor: Actor,
        before: Key,
        after: Key,
        happened: EventType,
        now: int,
        detail: Mapping[str, str],
    ) -> Changed:
        revision = log.append(transaction, _change(happened, before, now, actor, detail))
        after = replace(after, update_time=now, revision=revision)
        old = record.to_columns(before)
        columns = {name: value for name, value in record.to_columns(after).items() if value != old[name]}
        columns["alarm_time"] = schedule.alarm_time(after, now)
        transaction.run(ApiKeyRow.update(**columns).where(ApiKeyRow.id == before.id))
        return Changed(after, revision, now)

    def _repeated(self, select: requests.Select, caller: Key, seen: requests.Seen) -> Issued:
        key = self._load(select, caller, seen.key_id)
        old = self._load(select, caller, key.replaces_key_id) if seen.rotated else None
        return Issued(key, seen.revision, self._clock(), repeated=True, old=old)


def _actor(caller: Key) -> Actor:
    return Actor(caller.id, caller.name)


def _change(happened: EventType, key: Key, now: int, actor: Actor, detail: Mapping[str, str]) -> Change:
    return Change(
        type=happened,
        key_id=key.id,
        project_id=key.project_id,
        environment_id=key.environment_id,
        time=now,
        actor=actor,
        detail=detail,
    )


def _expiry(expire_time: int | None, ttl: int | None, now: int, otherwise: int) -> int:
    if expire_time is not None:
        return expire_time
    return otherwise if ttl is None else now + ttl


def _rescheduled(key: Key, interval: int, webhook_url: str, now: int) -> Key:
    """Return the key with this schedule. What was due under another interval or to another URL is announced anew."""
    if interval != key.rotation_interval:
        next_time = schedule.next_rotation(interval, now)
        key = replace(key, rotation_interval=interval, rotation_next_time=next_time)
        key = replace(key, rotation_due_revision=0, rotation_overdue=False)
    if webhook_url != key.webhook_url:
        key = replace(key, webhook_url=webhook_url, rotation_due_revision=0)
    return key


def _difference(before: Key, after: Key) -> dict[str, str]:
    """Say which fields of a key an update changed; for scopes also how. Values of other fields are not told."""
    stored = {"rotation": ("rotation_interval", "webhook_url")}
    changed = [
        name
        for name in UPDATABLE
        if any(getattr(before, column) != getattr(after, column) for column in stored.get(name, (name,)))
    ]
    if not changed:
        return {}
    detail = {"fields": ",".join(changed)}
    if added := [scope for scope in after.scopes if scope not in before.scopes]:
        detail["scopes_added"] = ",".join(added)
    if removed := [scope for scope in before.scopes if scope not in after.scopes]:
        detail["scopes_removed"] = ",".join(removed)
    return detail
