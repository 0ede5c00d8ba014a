"""Rotation of keys, by a caller with the scope or by the holder of the claim token of a due rotation."""

from dataclasses import dataclass, replace

from tumbler_server.clock import END, HOUR, NEVER, rfc3339
from tumbler_server.errors import ClaimOutdated, KeyIsExpired, KeyIsRevoked, KeyIsSuperseded, SelfWidening
from tumbler_server.events.log import Actor, EventType
from tumbler_server.keys import access, differences, idempotency, ledger, record, schedule, widening
from tumbler_server.keys.idempotency import RequestId
from tumbler_server.keys.ledger import Issued, Ledger
from tumbler_server.keys.record import Key, OldKeyEnds
from tumbler_server.keys.rules import Validation
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.secrets.secret import HashedSecret, NewKey
from tumbler_server.store.database import Read, Transaction

DEFAULT_GRACE = HOUR

CLAIM = Actor("", "claim")
"""The actor of a rotation by claim token. The token identifies no caller."""

_GRANTED = "SELECT time FROM event WHERE key_id = ? AND type = ? AND detail LIKE ? ORDER BY revision DESC LIMIT 1"
_NEW_EXPIRY = f'%"{differences.NEW}expire_time": "%'
"""How the detail of an update that set an expiry contains it; no value can contain it: JSON escapes the quotes."""


@dataclass(frozen=True)
class Rotation:
    """The parameters of a rotation; RotateRequest documents them."""

    key_id: str
    grace: int = DEFAULT_GRACE
    old_key_ends: int = 0
    expire_time: int | None = None
    ttl: int | None = None
    request_id: RequestId = RequestId()


class Rotations:
    """Rotates keys."""

    def __init__(self, ledger: Ledger, claim_tokens: ClaimTokens) -> None:
        self._ledger = ledger
        self._claim_tokens = claim_tokens

    def rotate(self, caller: Key, rotation: Rotation) -> Issued:
        """Replace a key with a successor that inherits all of its settings. The old key works for a grace period.

        With ``ON_FIRST_USE``, the old key ends at the successor's first use, or at the end of the grace period at the
        latest. See ``verify.first_use``.

        Raises ``InvalidFields``, ``KeyNotFound``, ``KeyIsRevoked``, ``KeyIsSuperseded``, ``KeyIsExpired``,
        ``ScopeEscalation``, ``SelfWidening``, ``RequestIdReused``, ``LimitReached``.
        """
        check = Validation()
        check.key_id("key_id", rotation.key_id)
        ends = check.grace(rotation.grace, rotation.old_key_ends)
        check.ttl("ttl", rotation.ttl)
        check.request_id("request_id", rotation.request_id.value)
        check.done()
        # Read the key before looking up the request id. Then a replay is not refused because its own first run ended
        # the key.
        old = self._ledger.load(self._ledger.read, caller, rotation.key_id)
        access.hand_out(caller, old.scopes)
        if seen := idempotency.find(self._ledger.select, caller, rotation.request_id):
            return self._ledger.repeated(self._ledger.read, caller, seen)
        check.in_future("expire_time", rotation.expire_time, self._ledger.clock())
        check.done()
        self._demand_rotatable(old)
        made, hashed = self._ledger.make(old.key_prefix.removesuffix(f"_{old.id}_"))

        def work(transaction: Transaction) -> Issued:
            if seen := idempotency.find(transaction.select, caller, rotation.request_id):
                return self._ledger.repeated(transaction.read, caller, seen)
            now = self._ledger.clock()
            before = self._ledger.load(transaction.read, caller, rotation.key_id)
            self._demand_rotatable(before)
            # The caller receives the successor's secret, and with it all of the key's permissions on this service.
            access.hand_out(caller, before.scopes)
            issued = self._replace(transaction, ledger.actor(caller), before, rotation, ends, made, hashed, now)
            idempotency.remember(
                transaction, caller, rotation.request_id, issued.key.id, issued.revision, now, rotated=True
            )
            return issued

        return self._ledger.write(work)

    def read_claim(self, token: str) -> tuple[str, int]:
        """Return the key id and the revision that a claim token names. Raises ``ClaimTokenInvalid``."""
        return self._claim_tokens.read(token)

    def claim(self, token: str, grace: int, old_key_ends: int = 0) -> Issued:
        """Replace a key whose rotation is due, on behalf of the holder of its claim token.

        Raises ``InvalidFields``, ``ClaimTokenInvalid``, ``ClaimOutdated``, ``KeyIsRevoked``, ``KeyIsSuperseded``,
        ``KeyIsExpired``, ``LimitReached``.
        """
        check = Validation()
        ends = check.grace(grace, old_key_ends)
        check.done()
        key_id, due_revision = self.read_claim(token)
        old = self._claimable(self._ledger.read, key_id, due_revision)
        made, hashed = self._ledger.make(old.key_prefix.removesuffix(f"_{old.id}_"))

        def work(transaction: Transaction) -> Issued:
            now = self._ledger.clock()
            before = self._claimable(transaction.read, key_id, due_revision)
            before = self._ledger.note(transaction, CLAIM, before, EventType.ROTATION_CLAIMED, now)
            return self._replace(transaction, CLAIM, before, Rotation(key_id, grace), ends, made, hashed, now)

        return self._ledger.write(work)

    def _replace(
        self,
        transaction: Transaction,
        actor: Actor,
        before: Key,
        rotation: Rotation,
        ends: OldKeyEnds,
        made: NewKey,
        hashed: HashedSecret,
        now: int,
    ) -> Issued:
        lifetime = NEVER if before.expire_time == NEVER else min(now + before.expire_time - before.create_time, END)
        expire_time = ledger.expiry(rotation.expire_time, rotation.ttl, now, otherwise=lifetime)
        if actor.key_id and widening.same(transaction.read, actor.key_id, before.id):
            lifetime = min(lifetime, _granted(transaction.read, before, now))
            if rotation.expire_time is None and rotation.ttl is None:
                expire_time = lifetime
            if expire_time > lifetime:
                raise SelfWidening(before.id)
        ends_on_first_use = ends is OldKeyEnds.ON_FIRST_USE
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
            # A key that was never used passes the pending first use on to its successor.
            awaits_first_use=ends_on_first_use or before.awaits_first_use,
        )
        successor = self._ledger.insert(transaction, successor, made, hashed, {"replaces_key_id": before.id})
        after = replace(
            before,
            replaced_by_key_id=successor.id,
            grace_expire_time=min(now + rotation.grace, before.expire_time),
            grace_ends_on_first_use=ends_on_first_use,
            rotation_next_time=NEVER,
        )
        detail = {
            "replaced_by_key_id": successor.id,
            "grace_expire_time": rfc3339(after.grace_expire_time),
        }
        if ends_on_first_use:
            detail["old_key_ends"] = "on_first_use"
        ended = self._ledger.save(transaction, actor, before, after, EventType.ROTATED, now, detail)
        return Issued(successor, ended.revision, now, text=made.text, old=ended.key)

    def _claimable(self, read: Read, key_id: str, due_revision: int) -> Key:
        key = record.find(read, key_id)
        if key is None:  # the database was restored from a backup that is older than the key
            raise ClaimOutdated(key_id)
        self._demand_rotatable(key)
        if not key.active or key.rotation_due_revision != due_revision:
            raise ClaimOutdated(key_id)
        return key

    def _demand_rotatable(self, key: Key) -> None:
        if key.revoked:
            raise KeyIsRevoked(key.id)
        if key.replaced_by_key_id:
            raise KeyIsSuperseded(key.id, key.replaced_by_key_id)
        if self._ledger.clock() >= key.expire_time:
            raise KeyIsExpired(key.id)
        check = Validation()
        check.record("api_key.", key)  # the successor would copy it; an Update can make it smaller
        check.done()


def _granted(read: Read, key: Key, now: int) -> int:
    """Return when a successor expires that lives for as long as the key was last given, at its creation or by Update.

    An Update that brought the expiry forward would otherwise end with the key's next rotation of itself.
    """
    if key.expire_time == NEVER:
        return NEVER
    found = read(_GRANTED, (key.id, EventType.UPDATED, _NEW_EXPIRY))
    given = found[0][0] if found else key.create_time
    return min(now + key.expire_time - given, END)
