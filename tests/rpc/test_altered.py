"""Rows that were changed by hand: no call uses them, and no cache keeps them after they are restored."""

import json
from typing import Any

import pytest

from tests.harness import CHEAP, World, forged
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import metrics
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR, NEVER
from tumbler_server.keys import evidence
from tumbler_server.secrets.secret import Hasher
from tumbler_server.store.database import SQLITE
from tumbler_server.store.models import ApiKeyRow, EventRow


def alter(world: World, key_id: str, **columns: Any) -> dict[str, Any]:
    """Change columns of a key's row by hand, and return their old values."""
    (row,) = world.core.store.select(ApiKeyRow.select().where(ApiKeyRow.id == key_id))
    before = {name: getattr(row, name) for name in columns}
    world.core.store.write_serialized(
        lambda transaction: transaction.run(ApiKeyRow.update(**columns).where(ApiKeyRow.id == key_id))
    )
    return before


def refusals() -> float:
    """Return how many reads have been refused in this process."""
    (family,) = metrics.ALTERED_RECORDS.collect()
    return family.samples[0].value


def test_a_secret_put_into_a_row_is_not_accepted(world: World) -> None:
    """A secret hash that was put into a row is refused while it is there and after the row is restored."""
    text = world.caller("tumbler:*")
    mine = forged(text)
    parsed = keyformat.parse(mine)
    hashed = Hasher(CHEAP, ()).hash(mine, parsed.secret)
    before = alter(world, parsed.id, secret_hash=hashed.secret_hash, digest=None, pepper_id="")
    refused = refusals()
    for _ in range(2):
        assert world.refused("List", pb.ListRequest(), mine).reason == "UNAUTHENTICATED"
        assert world.verdict(mine) == "NOT_FOUND"
        alter(world, parsed.id, **before)
    assert refusals() == refused + 2
    assert world.verdict(text) == "VALID"
    assert audit.run(world.core.store, world.clock)


def test_a_revocation_taken_out_is_not_remembered(world: World) -> None:
    """A revoked key is NOT_FOUND while its row says otherwise, and REVOKED after the row is restored."""
    made = world.create()
    world.revoke(made.api_key.id)
    before = alter(world, made.api_key.id, revoke_time=NEVER)
    assert world.verdict(made.key) == "NOT_FOUND"
    alter(world, made.api_key.id, **before)
    assert world.verdict(made.key) == "REVOKED"


def test_an_older_row_with_its_own_event_is_not_accepted(world: World) -> None:
    """A row from before the key's last event is refused, although it matches an older event."""
    made = world.create()
    (old,) = world.core.store.select(ApiKeyRow.select().where(ApiKeyRow.id == made.api_key.id))
    world.revoke(made.api_key.id)
    names = ("revoke_time", "revoke_reason", "revoke_comment", "update_time", "revision")
    alter(world, made.api_key.id, **{name: getattr(old, name) for name in names})
    assert world.verdict(made.key) == "NOT_FOUND"


def test_every_key_s_row_is_told_alike_by_both_ways(world: World) -> None:
    """The hot path compares rows as the audit does, whatever they contain, and refuses none that the service wrote."""
    plain = world.create()
    whole = world.create(
        name='ü"\\😀%s', scopes=["a:b"], metadata={"t": "ß%d"}, allowed_cidrs=["192.0.2.0/24"], owner_id="a'b"
    )
    world.set_active(plain.api_key.id, False)
    rotated = world.rotate(whole.api_key.id, old_key_ends="OLD_KEY_ENDS_ON_FIRST_USE")
    store = world.core.store
    rows = evidence.with_records(store.read, [key_id for (key_id,) in store.read("SELECT id FROM api_key")])
    assert len(rows) == 4
    assert [evidence.altered_in(row) for row in rows] == [[]] * 4
    for key_id in (plain.api_key.id, whole.api_key.id, rotated.api_key.id):
        for name in ("name", "metadata", "owner_id", "created_by_name"):
            before = alter(world, key_id, **{name: '{"%s":"\'"}'})
            (row,) = evidence.with_records(store.read, [key_id])
            assert evidence.altered_in(row) == [name]
            alter(world, key_id, **before)


def test_a_key_that_no_event_tells_of_is_accepted(world: World) -> None:
    """A row whose events predate schema 7 is accepted, because there is no digest to compare."""
    made = world.create()
    told = EventRow.update(record=None).where(EventRow.key_id == made.api_key.id)
    world.core.store.write_serialized(lambda transaction: transaction.run(told))
    alter(world, made.api_key.id, owner_id="bob")
    assert world.verdict(made.key) == "VALID"


def test_a_caller_whose_row_was_changed_by_hand_changes_nothing(world: World) -> None:
    """Scopes or a project written into the row of a cached caller give it nothing, also while it is cached."""
    made = world.create(scopes=["tumbler:keys:update"])
    weak = world.create(scopes=["a:b"])
    assert world.verdict(made.key) == "VALID"
    before = alter(world, made.api_key.id, scopes='["tumbler:*"]', project_id="tumbler")
    request = pb.UpdateRequest(
        api_key={"id": weak.api_key.id, "scopes": ["tumbler:*"]}, update_mask={"paths": ["scopes"]}
    )
    assert world.refused("Update", request, made.key).reason == "UNAUTHENTICATED"
    alter(world, made.api_key.id, **before)
    assert world.get(weak.api_key.id).scopes == ["a:b"]
    assert audit.run(world.core.store, world.clock)


@pytest.mark.parametrize("what", ["revoke", "off", "update"])
def test_a_change_that_was_made_by_hand_is_made_by_the_call(world: World, what: str) -> None:
    """A call whose result stands in the row already, put there by hand, writes its event all the same."""
    made = world.create(name="first")
    key_id = made.api_key.id
    columns = {"revoke": {"revoke_time": 1}, "off": {"active": False}, "update": {"name": "second"}}[what]
    before = alter(world, key_id, **columns)
    if what == "revoke":
        world.revoke(key_id)
    elif what == "off":
        world.set_active(key_id, False)
    else:
        world.update(key_id, "name", name="second")
    (event,) = world.core.store.select(EventRow.select().order_by(EventRow.revision.desc()).limit(1))
    (name,) = columns
    assert (event.key_id, json.loads(event.detail)["altered"]) == (key_id, name)
    if what != "update":
        alter(world, key_id, **before)
        assert world.verdict(made.key) == "NOT_FOUND"


def test_work_in_the_background_confirms_no_change_by_hand(world: World) -> None:
    """What is announced, rehashed or first used writes no event about a row that was changed by hand."""
    made = world.create(rotation={"interval": {"seconds": 86_400}}, scopes=["a:b"])
    key_id = made.api_key.id
    before = alter(world, key_id, scopes='["tumbler:*"]')
    world.clock.advance(DAY)
    world.turn()
    assert world.verdict(made.key) == "NOT_FOUND"
    found = audit.run(world.core.store, world.clock).problems
    assert found == (f"key {key_id} was changed without an event: scopes",)
    alter(world, key_id, **before)
    assert audit.run(world.core.store, world.clock)
    world.clock.advance(HOUR)
    world.turn()
    (event,) = world.core.store.select(EventRow.select().where(EventRow.key_id == key_id, EventRow.type == 7))
    assert "altered" not in event.detail
    assert world.verdict(made.key) == "VALID"
    assert audit.run(world.core.store, world.clock)


def test_a_value_of_another_type_is_not_the_same(world: World) -> None:
    """SQLite takes any type in any column: bytes that spell the same text are a change, and nothing else is hurt."""
    if world.core.store.dialect != SQLITE:
        pytest.skip("on SQLite alone")
    one, other = world.create(owner_id=""), world.create()
    key_id = one.api_key.id
    (row,) = world.core.store.select(ApiKeyRow.select().where(ApiKeyRow.id == key_id))
    sql = "UPDATE api_key SET {} = ? WHERE id = ?"
    for column, value, was in (("owner_id", b"", ""), ("digest", bytes(row.digest).hex(), bytes(row.digest))):
        world.core.store.write_unserialized(lambda db, c=column, v=value: db.execute_sql(sql.format(c), (v, key_id)))
        answer = world.call("BatchVerify", pb.BatchVerifyRequest(requests=[{"key": one.key}, {"key": other.key}]))
        assert [each.valid for each in answer.responses] == [False, True]
        told = f"key {key_id} was changed without an event: {column}"
        assert audit.run(world.core.store, world.clock).problems == (told,)
        world.core.store.write_unserialized(lambda db, c=column, w=was: db.execute_sql(sql.format(c), (w, key_id)))
    assert audit.run(world.core.store, world.clock)
