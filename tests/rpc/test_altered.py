"""Rows that were changed by hand: no call uses them, and no cache keeps them after they are restored."""

from typing import Any

from tests.harness import CHEAP, World, forged
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import metrics
from tumbler_server.audit import audit
from tumbler_server.clock import NEVER
from tumbler_server.keys import evidence
from tumbler_server.secrets.secret import Hasher
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
