"""Finding a key's row and its last event."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.domain import OPERATOR, Domain
from tumbler_server.keys import evidence
from tumbler_server.keys.lifecycle import Draft, Edit
from tumbler_server.store.database import POSTGRESQL, Read


@pytest.mark.parametrize("find", [evidence.rows, evidence.with_records], ids=lambda find: find.__name__)
def test_the_log_s_length_does_not_matter(domain: Domain, find: Callable[[Read, Sequence[str]], list[Any]]) -> None:
    """A key's last event is found by the index by key, however many events other keys have."""
    quiet, busy = domain.create().key, domain.create().key
    for number in range(300):  # makes the planner expect an event to be the busy key's
        domain.lifecycle.update(OPERATOR, Edit(busy.id, Draft("", name=f"name {number}"), ("name",)))
    store = domain.store
    postgresql = store.dialect == POSTGRESQL
    store.write_unserialized(lambda db: db.execute_sql("ANALYZE"))
    plans: list[str] = []

    def explained(sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        plan = store.read(f"{'EXPLAIN' if postgresql else 'EXPLAIN QUERY PLAN'} {sql}", parameters)
        plans.append("\n".join(str(line[-1]) for line in plan))
        return store.read(sql, parameters)

    assert len(find(explained, [quiet.id, busy.id])) == 2
    (plan,) = plans
    assert "event_by_key" in plan
    assert "SCAN e" not in plan
    if postgresql:
        assert "Index Cond: ((ROW(key_id, revision) >= " in plan
        assert "Seq Scan on event" not in plan
        assert "Backward using event_pkey" not in plan


def test_no_keys(domain: Domain) -> None:
    """For no keys, the result is empty."""
    assert evidence.rows(domain.store.read, []) == []
    assert evidence.page(domain.store.read, "", 10) == []
