"""A key as plain data and as a row."""

import dataclasses
import json
from typing import Any

import pytest

from tumbler_server.clock import NEVER, SECOND, rfc3339
from tumbler_server.events.log import Actor
from tumbler_server.keys import record
from tumbler_server.keys.record import Key, State
from tumbler_server.secrets.secret import HashedSecret
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow

NOW = 1_893_456_000 * SECOND

FIELDS = [field.name for field in dataclasses.fields(Key) if field.init]

PLAIN = Key(id="0000000000000000", project_id="acme")

FULL = Key(
    id="0123456789abcdef",
    project_id="acme",
    environment_id="live",
    name="Ключ #1 \U0001f511",
    key_prefix="acme_live_0123456789abcdef_",
    owner_id="user:1",
    scopes=("orders:*", "users:read"),
    metadata={"team": "línea\n2", "a": '"'},
    allowed_cidrs=("192.0.2.0/24", "2001:db8::/32"),
    active=False,
    create_time=NOW,
    created_by=Actor("fedcba9876543210", "an operator"),
    update_time=NOW + 1,
    expire_time=NOW + 2,
    last_used_time=NOW + 3,
    revoke_time=NOW + 4,
    revoke_reason=3,
    revoke_comment="left",
    replaces_key_id="1111111111111111",
    replaced_by_key_id="2222222222222222",
    grace_expire_time=NOW + 5,
    rotation_interval=6,
    rotation_next_time=NOW + 7,
    rotation_due_revision=5,
    rotation_overdue=True,
    webhook_url="https://hooks.example.com/in",
    expiry_warnings=1,
    grace_ends_on_first_use=True,
    awaits_first_use=True,
    revision=8,
)


def insert(store: Store, key: Key, hashed: HashedSecret) -> None:
    """Insert a key into the table."""
    row = {**record.to_columns(key), **dataclasses.asdict(hashed)}

    def work(transaction: Transaction) -> None:
        transaction.run(ApiKeyRow.insert(**row))

    store.write_serialized(work)


class TestRow:
    """Records and rows."""

    @pytest.mark.parametrize("key", [PLAIN, FULL], ids=["plain", "full"])
    @pytest.mark.parametrize("digest", [None, bytes(range(32))], ids=["no digest", "a digest"])
    def test_round_trip(self, store: Store, key: Key, digest: bytes | None) -> None:
        """A record is read as it was written, by the ORM and by the hot path's own statement."""
        hashed = HashedSecret("hash", digest, "pepper" if digest else "")
        insert(store, key, hashed)
        (row,) = store.select(ApiKeyRow.select())
        assert record.from_row(row) == key
        (found,) = store.read(f"{record.SELECT} WHERE id = ?", (key.id,))
        assert record.from_tuple(found) == (key, hashed)

    def test_every_field_is_tried(self) -> None:
        """Except for project_id, every field of the full key differs from the plain one's."""
        assert [name for name in FIELDS if getattr(PLAIN, name) == getattr(FULL, name)] == ["project_id"]

    def test_every_column(self) -> None:
        """A record has every column except the secret's proofs and the alarm time."""
        columns = {field.column_name for field in ApiKeyRow._meta.sorted_fields}
        assert columns - record.to_columns(FULL).keys() == {"secret_hash", "digest", "pepper_id", "alarm_time"}
        assert record.to_columns(FULL).keys() <= columns

    def test_no_secret_in_a_record(self) -> None:
        """A record has no field for a secret, a hash or a digest, because it is cached and sent."""
        assert not {"secret", "secret_hash", "digest", "pepper_id", "text"} & {
            field.name for field in dataclasses.fields(Key)
        }

    def test_search_text(self) -> None:
        """The search text is the name and the prefix, case-folded in every script."""
        columns = record.to_columns(dataclasses.replace(FULL, name="STRASSE Straße КЛЮЧ"))
        assert "strasse strasse ключ" in columns["search_text"]
        assert FULL.key_prefix.casefold() in columns["search_text"]

    def test_metadata_is_stored_sorted(self) -> None:
        """The same metadata is always stored as the same text, so an update without a difference changes nothing."""
        one = dataclasses.replace(PLAIN, metadata={"a": "1", "b": "2"})
        other = dataclasses.replace(PLAIN, metadata={"b": "2", "a": "1"})
        assert record.to_columns(one) == record.to_columns(other)
        assert json.loads(record.to_columns(one)["metadata"]) == {"a": "1", "b": "2"}


class TestState:
    """A key's state."""

    @pytest.mark.parametrize(
        ("fields", "state"),
        [
            ({}, State.ACTIVE),
            ({"expire_time": NOW + 1}, State.ACTIVE),
            ({"expire_time": NOW}, State.EXPIRED),
            ({"expire_time": NOW - 1}, State.EXPIRED),
            ({"active": False}, State.INACTIVE),
            ({"active": False, "expire_time": NOW}, State.INACTIVE),
            ({"replaced_by_key_id": "x", "grace_expire_time": NOW + 1}, State.SUPERSEDED),
            ({"replaced_by_key_id": "x", "grace_expire_time": NOW}, State.SUPERSEDED),
            ({"replaced_by_key_id": "x", "grace_expire_time": NOW + 1, "active": False}, State.SUPERSEDED),
            ({"replaced_by_key_id": "x", "grace_expire_time": NOW, "expire_time": NOW}, State.SUPERSEDED),
            ({"revoke_time": NOW}, State.REVOKED),
            ({"revoke_time": NOW + 1}, State.REVOKED),
            (
                {
                    "revoke_time": 0,
                    "replaced_by_key_id": "x",
                    "grace_expire_time": 0,
                    "active": False,
                    "expire_time": 0,
                },
                State.REVOKED,
            ),
        ],
        ids=lambda value: value.name if isinstance(value, State) else "+".join(value) or "nothing",
    )
    def test_table(self, fields: dict[str, Any], state: State) -> None:
        """The state is the first that applies: revoked, superseded, inactive, expired, active."""
        assert dataclasses.replace(PLAIN, **fields).state(NOW) is state


class TestEtag:
    """The etag, which changes with every change."""

    def test_by_revision(self) -> None:
        """Etags differ if revisions differ, or times: another history has the same revisions."""
        changes = [(revision, time) for revision in (1, 2, 16, 2**40) for time in (1, 2, NOW)]
        etags = {dataclasses.replace(PLAIN, revision=revision, update_time=time).etag for revision, time in changes}
        assert len(etags) == 12
        assert dataclasses.replace(FULL, revision=1, update_time=NOW).etag in etags

    def test_form(self) -> None:
        """An etag is quoted, as in RFC 9110 and AIP-154."""
        assert dataclasses.replace(FULL, revision=8, update_time=255).etag == '"8-ff"'


class TestRfc3339:
    """Instants as RFC 3339 text."""

    @pytest.mark.parametrize(
        ("instant", "text"),
        [
            (0, "1970-01-01T00:00:00Z"),
            (1, "1970-01-01T00:00:00.000001Z"),
            (NOW, "2030-01-01T00:00:00Z"),
            (NOW + 500_000, "2030-01-01T00:00:00.500000Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        ],
    )
    def test_table(self, instant: int, text: str) -> None:
        """An instant is written in UTC, exact to the microsecond."""
        assert rfc3339(instant) == text

    def test_never_is_no_time(self) -> None:
        """`NEVER` is later than every instant that can be written, and fits the column."""
        assert NEVER > 253_402_300_799_999_999
        assert NEVER == 2**63 - 1
