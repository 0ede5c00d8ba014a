"""Events for keys that an older server changed after the migration, since their last events do not cover their rows."""

import functools

from tumbler_server.clock import Clock
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys import evidence
from tumbler_server.store.database import Store, Transaction

ACTOR = Actor("", "migrate")
_PAGE = 500
_SET = "UPDATE api_key SET revision = ? WHERE id = ?"


def record(store: Store, clock: Clock) -> int:
    """Write a RECORDED event for each key whose last event has no digest of its row, and return their number."""
    after, recorded = "", 0
    while page := evidence.page(store.read, after, _PAGE):
        after = page[-1].columns["id"]
        untold = [row.columns["id"] for row in page if row.told == b""]
        if untold:
            recorded += store.write_serialized(functools.partial(_record, key_ids=untold, clock=clock))
    return recorded


def _record(transaction: Transaction, key_ids: list[str], clock: Clock) -> int:
    now = clock()
    changes = [
        Change(
            EventType.RECORDED,
            row.columns["id"],
            row.columns["project_id"],
            row.columns["environment_id"],
            now,
            ACTOR,
            record=evidence.digest(row.columns),
            previous=row.revision,
        )
        for row in evidence.rows(transaction.read, key_ids)
        if row.told == b""
    ]
    if not changes:
        return 0
    first = log.extend(transaction, changes)
    transaction.run_many(_SET, [[first + place, change.key_id] for place, change in enumerate(changes)])
    return len(changes)
