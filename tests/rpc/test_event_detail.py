"""KeyEvent.detail matches event.proto's tables: each type's keys, each value's form, and what Watch sends."""

import json
import re
from pathlib import Path
from typing import Any

from tests.harness import World, lasting
from tests.rpc.test_claims import claim, due
from tests.rpc.test_first_use import rotated, use
from tests.webhooks.receiver import Receiver
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.audit import recording
from tumbler_server.clock import DAY
from tumbler_server.events import log
from tumbler_server.events.log import EventType
from tumbler_server.keys import differences
from tumbler_server.rpc import responses
from tumbler_server.secrets import pepper
from tumbler_server.store.models import EventRow

PROTO = Path(__file__).parents[2] / "protos/tumbler/v1/event.proto"

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"

FORMS = {
    "duration": r"\d+(\.\d{1,6})?s",
    "end": "on_first_use",
    "id": "[0-9A-Za-z]{16}",
    "list": "[^, ]+(,[^, ]+)*",
    "object": r"\{.*\}",
    "reason": "unspecified|compromised|superseded|owner_left|unused|other",
    "text": r"(?s).+",
    "time": TIME,
}
"""The forms that the proto's comment describes."""

LONG = r"\(\d,\d{3} characters, sha256:[0-9a-f]{64}\)"
"""The replacement of a long value."""

Row = tuple[str, str]


def table(columns: int) -> list[tuple[str, ...]]:
    """Return the rows of event.proto's one table with ``columns`` columns."""
    found = re.findall(r"^ +//     \|(.*)\|$", PROTO.read_text(), re.MULTILINE)
    rows = [tuple(cell.strip() for cell in row.split("|")) for row in found]
    return [row for row in rows if len(row) == columns and not row[0].startswith("-")][1:]


def specified() -> dict[Row, tuple[str, bool]]:
    """Return the form of each type's keys, with FIELD expanded, and whether Watch sends them."""
    fields = {row[0]: row[1] for row in table(2)}
    rows: dict[Row, tuple[str, bool]] = {}
    for kind, key, form, watched in table(4):
        names = [key.replace("FIELD", name) for name in fields] if "FIELD" in key else [key]
        for name in names:
            known = fields[name.partition(".")[2]] if "FIELD" in key else form
            rows[kind, name] = (known, watched == "yes")
    return rows


def live(world: World, receiver: Receiver) -> None:
    """Write every type of event, with every key that its detail can have."""
    fields: dict[str, Any] = {
        "name": "first name",
        "owner_id": "alice",
        "scopes": ["a:b", "c:d"],
        "metadata": {"z": "1", "a": "ж"},
        "allowed_cidrs": ["192.0.2.0/24", "2001:db8::/32"],
        "ttl": lasting(100 * DAY),
        "rotation": {"interval": lasting(50 * DAY + 1), "webhook_url": receiver.url},
    }
    created = world.create(**fields)
    mask = ("name", "owner_id", "scopes", "metadata", "allowed_cidrs", "expire_time", "rotation")
    other = {"interval": lasting(60 * DAY), "webhook_url": f"{receiver.url}/other"}
    metadata = {f"k{number}": '"' * 1_000 for number in range(3)}
    world.update(created.api_key.id, *mask, name="other name", owner_id="bob", scopes=["e:f"], rotation=other,
                 allowed_cidrs=["192.0.2.1"], metadata=metadata)  # fmt: skip
    world.update(created.api_key.id, *mask, expire_time=created.api_key.expire_time)
    pairs = ((True, "REVOKE_REASON_OTHER"), (False, "REVOKE_REASON_COMPROMISED"))
    for active, reason in pairs:
        world.set_active(created.api_key.id, not active)
        key_id = world.create().api_key.id
        world.revoke(key_id, reason=reason, comment="see 42" if active else "")

    _, token = due(world, receiver)
    claim(world, token)
    due(world, receiver, ttl=lasting(9 * DAY))
    world.clock.advance(DAY + 1)
    world.turn()

    _, answer = rotated(world)
    use(world, answer.key)
    request = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=receiver.url)
    world.call("RotateWebhookSecret", request)

    altered = world.create()
    statement = f"UPDATE api_key SET owner_id = 'm' WHERE id = '{altered.api_key.id}'"  # noqa: S608 - an id of our own
    world.core.store.write_unserialized(lambda db: db.execute_sql(statement))
    world.set_active(altered.api_key.id, False)

    rehashed = world.create()
    pepper.rotate(world.installation.pepper_file)
    world.reopen()
    assert world.verdict(rehashed.key) == "VALID"
    world.core.rehasher.drain()
    # Clear the digest of the key's last event, as an older server would have left it.
    old = EventRow.update(record=None).where(EventRow.revision == world.events()[-1].revision)
    world.core.store.write_serialized(lambda transaction: transaction.run(old))
    assert recording.record(world.core.store, world.clock) == 1


def test_detail(mailing: World, receiver: Receiver) -> None:
    """The events match the tables, and every row of the tables occurs."""
    rows = specified()
    live(mailing, receiver)
    seen: set[Row] = set()
    types: set[str] = set()
    for event in mailing.events():
        kind = EventType(event.type).name
        types.add(kind)
        for key, value in json.loads(event.detail).items():
            row = (kind, key) if (kind, key) in rows else ("any", key)
            assert row in rows, f"{kind}: {key} is in no table"
            form, watched = rows[row]
            assert re.fullmatch(FORMS[form], value) or (
                key.startswith(("old.", "new.")) and re.fullmatch(LONG, value)
            ), f"{kind}: {key} is no {form}: {value}"
            assert bool(differences.public({key: value})) is watched, f"{kind}: {key}"
            seen.add(row)
    assert seen == set(rows)
    assert types == {kind.name for kind in EventType}


def test_hash_is_opaque(mailing: World) -> None:
    """The hash covers more than the fields sent, so a client cannot compute it."""
    mailing.create()
    before, row = (as_event(event) for event in mailing.events()[-2:])
    assert row.record is not None
    other = row._replace(record=row.record[:-1] + bytes([row.record[-1] ^ 1]))
    assert responses.event(other) == responses.event(row)
    assert log.follows(before.hash, row)
    assert not log.follows(before.hash, other)


def as_event(row: EventRow) -> log.Event:
    """Return an event as the log reads it."""
    values = (getattr(row, name) for name in (*log.FIRST_COLUMNS, "address", "request_id", "record", "hash"))
    return log.Event._make(bytes(value) if isinstance(value, memoryview) else value for value in values)
