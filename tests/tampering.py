"""Changing a database by hand, at random places, and putting it back: `make tampering` does so 1,000 times.

Each column of each table is changed, alone and, for a key's row, together with what its event tells of it. The audit
must find each change but those in ``UNSEEN``, which docs/security.md names.
"""

import argparse
import itertools
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peewee

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, NEVER
from tumbler_server.events.retention import Retention
from tumbler_server.keys import evidence
from tumbler_server.keys.idempotency import RequestId
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import MODELS, DeliveryRow, EventRow, ServerRow


@dataclass(frozen=True)
class Place:
    """A column of a table. If ``covered``, the digest in the key's last event is made to match the change."""

    table: str
    column: str
    covered: bool = False

    def __str__(self) -> str:
        return f"{self.table}.{self.column}" + ("-and-its-event" if self.covered else "")


_OPERATIONAL = {
    "api_key": ("last_used_time",),
    "request": ("*",),
    "installation": ("*",),
    "lease": ("*",),
    "clock": ("*",),
    "server": ("*",),
    "outbox": ("*",),
    "webhook_endpoint": ("*",),
    "webhook_delivery": (
        *("id", "endpoint_id", "url", "state", "attempts", "tries", "give_up_time", "next_attempt_time"),
        *("last_attempt_time", "last_status", "last_error"),
    ),
}


def places() -> list[Place]:
    """Return all places."""
    found = [
        Place(model._meta.table_name, column.column_name) for model in MODELS for column in model._meta.sorted_fields
    ]
    covered = [Place("api_key", column, True) for column in (*evidence.COLUMNS, *evidence.LATER) if column != "id"]
    return [*found, *covered]


UNSEEN = frozenset(
    place for place in places() if not place.covered and ({"*", place.column} & set(_OPERATIONAL.get(place.table, ())))
)
"""Places where no audit can see a change. docs/security.md says why."""


def live(domain: Domain, clock: FrozenClock) -> None:
    """Create data of every kind, some of it old enough for its events to be removed."""
    url = "https://93.184.216.34/hook"
    old = [domain.create(name=f"old {number}", scopes=("a:b", "c:*")).key.id for number in range(3)]
    domain.revoke(old[0])
    clock.advance(500 * DAY)
    request = RequestId("123e4567-e89b-42d3-a456-426614174000", b"fingerprint")
    made = domain.create(
        name="new", owner_id="alice", scopes=("a:b", "tumbler:keys:read"), metadata={"k": "v"}, ttl=90 * DAY,
        allowed_cidrs=("192.0.2.0/24",), rotation_interval=30 * DAY, webhook_url=url, request_id=request,
    )  # fmt: skip
    other = domain.create(project_id="globex", environment_id="live", name="other").key.id
    domain.lifecycle.update(OPERATOR, Edit(old[1], Draft("", name="renamed"), ("name",)))
    domain.rotate(made.key.id)
    domain.lifecycle.set_active(OPERATOR, other, active=False)
    domain.lifecycle.revoke(OPERATOR, other, 1, "by the tests")
    (event,) = domain.store.select(EventRow.select().order_by(EventRow.revision.desc()).limit(1))
    delivery = {
        **{name: getattr(event, name) for name in ("revision", "key_id", "project_id", "type", "detail")},
        "id": "msg_1",
        "endpoint_id": "e",
        "url": url,
        "event_time": event.time,
        "state": 2,
        "give_up_time": clock.now + DAY,
        "next_attempt_time": clock.now,
    }
    server = ServerRow.insert(name="host/1/a", pepper_ids="0", beat=1, seen_time=clock.now)

    def insert(transaction: Transaction) -> None:
        for each in (DeliveryRow.insert(**delivery), server):
            transaction.run(each)

    domain.store.write_serialized(insert)


Rows = dict[type[peewee.Model], list[dict[str, Any]]]


def rows(store: Store) -> Rows:
    """Return all rows of a database."""
    return {model: store.select(model.select().dicts()) for model in MODELS}


def put_back(store: Store, before: Rows) -> None:
    """Restore a database to exactly the rows that it had before."""

    def restore(transaction: Transaction) -> None:
        for each in MODELS:  # the keys before their scopes, which triggers write too
            transaction.run(each.delete())
            for found in before[each]:
                transaction.run(each.insert(**found))

    store.write_serialized(restore)


def tamper(store: Store, place: Place, rng: random.Random) -> Callable[[], None]:
    """Change a column of a random row, and return a function that restores everything."""
    model = next(model for model in MODELS if model._meta.table_name == place.table)
    before = rows(store)
    row = rng.choice(before[model])
    keys = model._meta.get_primary_keys()
    same = [getattr(model, key.name) == row[key.name] for key in keys]
    value = _other(place.column, row[place.column], rng)
    store.write_serialized(lambda transaction: transaction.run(model.update(**{place.column: value}).where(*same)))
    if place.covered:
        ((columns, _),) = evidence.stored(store.read, [row["id"]]).values()
        fits = EventRow.update(record=evidence.digest(columns)).where(EventRow.revision == row["revision"])
        store.write_serialized(lambda transaction: transaction.run(fits))
    return lambda: put_back(store, before)


_JSON = {
    "scopes": '["tumbler:*"]',
    "metadata": '{"by": "mallory"}',
    "allowed_cidrs": '["10.0.0.0/8"]',
    "detail": '{"by": "mallory"}',
}


def _other(column: str, value: Any, rng: random.Random) -> Any:
    """Return a value that differs from the column's current one."""
    if column in _JSON:
        return _JSON[column]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 5 if value == NEVER else value + rng.randint(1, 100)
    if isinstance(value, (bytes, memoryview)):
        data = bytearray(value)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    if value is None:
        return b"x" if column in ("digest", "record", "previous_secret") else "x"
    return f"{value}x"


def main() -> None:
    """Tamper as often as requested, and report what the audit found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1_000, help="how many changes (1,000)")
    parser.add_argument("--seed", type=int, default=1, help="where the random places begin (1)")
    parser.add_argument("--database", default="", help="the URL of an empty database; else SQLite in a temporary file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = new_store(options.database or f"sqlite:///{Path(folder) / 'tampered.db'}")
        sys.exit(_run(store, options.times, options.seed))


def _run(store: Store, times: int, seed: int) -> int:
    clock, rng = FrozenClock(), random.Random(seed)  # noqa: S311 - a test's choice
    domain = Domain(store, clock)
    live(domain, clock)
    Retention(store, clock, 400 * DAY).remove()
    assert audit.run(store, clock), "the audit finds something before anything was done"
    found: dict[Place, list[bool]] = {place: [] for place in places()}
    for place in itertools.islice(itertools.cycle(places()), times):
        undo = tamper(store, place, rng)
        found[place].append(not audit.run(store, clock))
        undo()
    wrong = 0
    for place, outcomes in found.items():
        expected = place not in UNSEEN
        wrong += outcomes.count(not expected)
        print(f"{place!s:50} {len(outcomes):4} changes, {sum(outcomes):4} found{'' if expected else ' (not expected)'}")
    seen = sum(len(outcomes) for place, outcomes in found.items() if place not in UNSEEN)
    print(f"{times} changes by hand: {seen} of them can be found, {wrong} were not as told")
    domain.close()
    store.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
