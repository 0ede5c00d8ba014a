"""Operators' keys: keys of the reserved project that may do everything. The first one is created without a caller."""

from collections.abc import Callable
from dataclasses import dataclass

from tumbler_server.clock import NEVER
from tumbler_server.events.log import Actor
from tumbler_server.keys import record, schedule
from tumbler_server.keys.access import OPERATORS
from tumbler_server.keys.ledger import Issued, Ledger
from tumbler_server.keys.record import Key
from tumbler_server.keys.rules import Validation
from tumbler_server.secrets.secret import HashedSecret, NewKey
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import STANDING, ApiKeyRow

ALL_SCOPES = "tumbler:*"
"""The scope of an operator's key. No other scope grants it."""

_SUPERSEDED = 2

_HOLDS_ALL = f'%"{ALL_SCOPES}"%'
"""Found in a key's own column. The index of scopes beside it could lack a row, and a leaked key outlive its end."""


@dataclass(frozen=True)
class Seated(Issued):
    """A created operator's key, and the ids of the keys revoked with it."""

    revoked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Working:
    """The number of active operators' keys, and when the last of them expires: ``NEVER`` if one does not expire.

    ``bound`` of them are accepted only from some networks.
    """

    count: int
    until: int
    bound: int


def issue(
    ledger: Ledger,
    made: NewKey,
    hashed: HashedSecret,
    name: str,
    command: str,
    demand: Callable[[Transaction], None],
    revoke_others: bool = False,
) -> Seated:
    """Insert an operator's key, in the same transaction as the precondition check ``demand``.

    ``command`` is the actor's name in its event. With ``revoke_others``, all other operators' keys are revoked.
    Raises ``InvalidFields`` for an invalid name, and whatever ``demand`` raises.
    """
    check = Validation()
    check.name("name", name)
    check.done()
    actor = Actor("", command)

    def work(transaction: Transaction) -> Seated:
        demand(transaction)
        now = ledger.clock()
        others = _not_revoked(transaction) if revoke_others else []
        key = Key(
            id="",
            project_id=OPERATORS,
            name=name,
            scopes=(ALL_SCOPES,),
            create_time=now,
            created_by=actor,
            update_time=now,
            expiry_warnings=schedule.given_warnings(NEVER, now),
        )
        key = ledger.insert(transaction, key, made, hashed, {})
        revision = key.revision
        for other in others:
            comment = f"replaced by {key.id}"
            revision = ledger.revoke(transaction, actor, other, _SUPERSEDED, comment, now).revision
        return Seated(key, revision, now, text=made.text, revoked=tuple(other.id for other in others))

    return ledger.write(work)


def working(store: Store, now: int) -> Working:
    """Return a summary of the working operators' keys: not revoked, superseded, deactivated or expired."""
    ((count, until, bound),) = store.read(
        "SELECT COUNT(*), MAX(k.expire_time), SUM(CASE WHEN k.allowed_cidrs <> '[]' THEN 1 ELSE 0 END) "  # noqa: S608
        f"FROM api_key k WHERE k.project_id = ? AND k.scopes LIKE ? AND ({STANDING}) = {int(record.State.ACTIVE)} "
        "AND k.expire_time > ?",
        (OPERATORS, _HOLDS_ALL, now),
    )
    return Working(int(count), int(until or 0), int(bound or 0))


def _not_revoked(transaction: Transaction) -> list[Key]:
    ids = transaction.read("SELECT id FROM api_key WHERE project_id = ? AND scopes LIKE ?", (OPERATORS, _HOLDS_ALL))
    held = ApiKeyRow.select().where(ApiKeyRow.id.in_([key_id for (key_id,) in ids]) & (ApiKeyRow.revoke_time == NEVER))
    return [record.from_row(row) for row in transaction.select(held.order_by(ApiKeyRow.create_time, ApiKeyRow.id))]
