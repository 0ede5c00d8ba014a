"""The schema's migrations."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import peewee
import pytest

from tests.domain import OPERATOR, Domain, new_store
from tests.harness import FrozenClock
from tests.unit.test_database import file_of
from tumbler_server.audit import audit
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.events import log
from tumbler_server.keys import record
from tumbler_server.keys.listing import Query
from tumbler_server.keys.record import Key
from tumbler_server.store import migrations
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.store.migrations import m0004_listing, m0007_evidence
from tumbler_server.store.models import MODELS

KINDS = {
    "character varying": "text",
    "varchar": "text",
    "text": "text",
    "bigint": "integer",
    "smallint": "integer",
    "integer": "integer",
    "bytea": "bytes",
    "blob": "bytes",
    "boolean": "boolean",
    "bool": "boolean",
}
"""Column types by the name that a database or peewee uses."""


def columns_of(store: Store, table: str) -> dict[str, tuple[str, bool, bool]]:
    """Return for each column of a table its kind, whether it is nullable, and whether it is in the primary key."""
    found = store.write_unserialized(lambda db: db.get_columns(table))
    return {
        column.name: (
            KINDS[column.data_type.partition("(")[0].lower()],
            column.null and not column.primary_key,  # only SQLite lets a text primary key be null
            column.primary_key,
        )
        for column in found
    }


def tables(store: Store) -> set[str]:
    """Return the names of all tables."""
    return set(store.write_unserialized(lambda db: db.get_tables()))


def made(store: Store) -> set[str]:
    """Return the names of all indexes and triggers, except those that the database creates itself."""
    if store.dialect == "sqlite":
        found = store.read("SELECT name FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL")
    else:
        found = store.read(
            "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema() UNION "
            "SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
            "WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal"
        )
    return {name for (name,) in found}


def run(store: Store, sql: str) -> None:
    """Run a statement without the server's code."""
    store.write_unserialized(lambda db: db.execute_sql(sql))


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Store]:
    """Yield a store on each kind of database, without tables."""
    store = open_store(empty_database_url, create=True)
    yield store
    store.close()


class TestSchema:
    """The schema that the migrations create."""

    @pytest.mark.parametrize("model", MODELS, ids=lambda model: model._meta.table_name)
    def test_columns(self, store: Store, model: type[peewee.Model]) -> None:
        """Each model has the table's columns, kinds, nullability and primary key."""
        meta = model._meta
        keys = {field.name for field in meta.get_primary_keys()}
        expected = {
            field.column_name: (KINDS[field.field_type.lower()], field.null, field.name in keys)
            for field in meta.sorted_fields
        }
        assert columns_of(store, meta.table_name) == expected

    def test_tables(self, store: Store) -> None:
        """The tables are those of the models, and the schema's own."""
        assert tables(store) == {model._meta.table_name for model in MODELS} | {"schema_version"}

    def test_single_rows(self, store: Store) -> None:
        """A new log starts at revision 0, and the installation has a random secret of 32 bytes."""
        ((id_, revision, hash_, anchor_revision, anchor_hash, kept),) = store.read("SELECT * FROM log_head")
        assert (id_, revision, bytes(hash_), bytes(kept)) == (1, 0, bytes(32), bytes(32))
        assert (anchor_revision, bytes(anchor_hash)) == (0, bytes(32))
        ((id_, secret),) = store.read("SELECT * FROM installation")
        assert (id_, len(bytes(secret))) == (1, 32)
        assert bytes(secret) != bytes(32)


class TestMigrate:
    """Applying the missing steps."""

    def test_twice(self, empty: Store) -> None:
        """The first run applies every step, the second none."""
        assert migrations.current(empty) == 0
        assert migrations.migrate(empty) == list(range(1, migrations.NEWEST + 1))
        assert migrations.migrate(empty) == []
        assert migrations.current(empty) == migrations.NEWEST

    def test_at_the_same_time(self, empty_database_url: str) -> None:
        """If eight servers migrate at the same time, one applies the steps; the others wait and apply none."""
        begin = threading.Barrier(8)

        def work(_: int) -> list[int]:
            store = open_store(empty_database_url, create=True)
            begin.wait()
            try:
                return migrations.migrate(store)
            finally:
                store.close()

        with ThreadPoolExecutor(8) as executor:
            applied = sorted(executor.map(work, range(8)))
        assert applied == [[]] * 7 + [list(range(1, migrations.NEWEST + 1))]

    def test_next_step(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A run applies only the steps that the database does not have yet."""
        number = migrations.NEWEST + 1
        step = SimpleNamespace(apply=lambda _, db: db.execute_sql("CREATE TABLE added (id SMALLINT PRIMARY KEY)"))
        monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, step))
        monkeypatch.setattr(migrations, "NEWEST", number)
        assert migrations.migrate(store) == [number]
        assert "added" in tables(store)
        assert migrations.current(store) == number

    def test_all_or_nothing(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failed step is rolled back completely: its tables and its number."""

        def apply(dialect: str, db: peewee.Database) -> None:
            db.execute_sql("CREATE TABLE half (id SMALLINT PRIMARY KEY)")
            raise KeyError

        before = migrations.NEWEST
        monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, SimpleNamespace(apply=apply)))
        monkeypatch.setattr(migrations, "NEWEST", before + 1)
        with pytest.raises(KeyError):
            migrations.migrate(store)
        assert "half" not in tables(store)
        assert migrations.current(store) == before

    def test_newer(self, store: Store) -> None:
        """A database with a newer schema is left unchanged, and the message says to upgrade the program."""
        run(store, "UPDATE schema_version SET version = 99")
        with pytest.raises(SetupError, match=r"schema 99, newer .* upgrade tumbler-server"):
            migrations.migrate(store)
        assert migrations.current(store) == 99

    def test_without_its_row(self, store: Store) -> None:
        """A database whose schema has no number is not empty, and no command takes it for that."""
        run(store, "UPDATE schema_version SET id = -1")
        for read in (migrations.current, migrations.check, migrations.migrate):
            with pytest.raises(SetupError, match="the row of schema_version"):
                read(store)

    def test_old_postgresql(self, new_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
        """A PostgreSQL server below the minimum version is refused, and no table is created."""
        store = open_store(new_database("postgresql"))
        monkeypatch.setattr(migrations, "POSTGRESQL_FLOOR", 990_000)
        with pytest.raises(SetupError, match="PostgreSQL 99 or newer is needed"):
            migrations.migrate(store)
        assert tables(store) == set()
        store.close()


def old_event(transaction: Transaction, key_id: str, now: int) -> int:
    """Append a key's event in the first schema's form, and return its revision."""
    ((revision, before),) = transaction.read("SELECT revision + 1, hash FROM log_head")
    content = [revision, 1, key_id, "acme", "", now, "", "the past", "{}"]
    digest = hashlib.sha256(bytes(before) + json.dumps(content, separators=(",", ":")).encode()).digest()
    names = "revision, type, key_id, project_id, environment_id, time, actor_key_id, actor_name, detail, hash"
    insert = f"INSERT INTO event ({names}) VALUES ({', '.join('?' * 10)})"  # noqa: S608 - constant names
    transaction.run_many(insert, [[*content, digest]])
    transaction.run_many("UPDATE log_head SET revision = ?, hash = ?", [[revision, digest]])
    return int(revision)


def old_key(store: Store, key_id: str, now: int) -> None:
    """Insert a key in the first schema's form, with its event."""
    newer = {"rotation_due_revision", "rotation_overdue", "webhook_url", "expiry_warnings"}
    newer |= {"grace_ends_on_first_use", "awaits_first_use"}

    def work(transaction: Transaction) -> None:
        revision = old_event(transaction, key_id, now)
        key = Key(id=key_id, project_id="acme", create_time=now, update_time=now, revision=revision)
        columns = {name: value for name, value in record.to_columns(key).items() if name not in newer}
        columns |= {"secret_hash": "", "pepper_id": ""}
        slots = ", ".join("?" * len(columns))
        insert = f"INSERT INTO api_key ({', '.join(columns)}) VALUES ({slots})"  # noqa: S608 - constant names
        transaction.run_many(insert, [list(columns.values())])

    store.write_serialized(work)


class TestFromAnOlderRelease:
    """Databases created by an older release."""

    def test_anchor(self, empty: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log without an anchor is refused until it is migrated; then it is complete and accepts changes."""
        with monkeypatch.context() as older:
            older.setattr(migrations, "STEPS", migrations.STEPS[:1])
            older.setattr(migrations, "NEWEST", 1)
            assert migrations.migrate(empty) == [1]
        assert "anchor_revision" not in columns_of(empty, "log_head")
        for number in range(3):
            old_key(empty, f"{number:016}", clock.now)
        with pytest.raises(SetupError, match="schema 1, this program needs"):
            migrations.check(empty)

        assert migrations.migrate(empty) == list(range(2, migrations.NEWEST + 1))
        migrations.check(empty)
        assert log.anchor(empty) == 0
        assert log.head(empty).revision == 6  # the migration appends an event with each key's record
        domain = Domain(empty, clock)
        domain.revoke(f"{0:016}")
        domain.create()
        assert audit.run(empty, clock) == audit.Audit(8, (), removed=0, since=clock.now, keys=4)
        domain.close()

    @pytest.mark.parametrize("released", range(1, migrations.NEWEST))
    def test_chain(
        self,
        empty: Store,
        released: int,
        clock: FrozenClock,
        dialect: str,
        new_database: Callable[[str], str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """From each older schema one run leads to the schema of a new database, and keeps all data."""
        with monkeypatch.context() as older:
            older.setattr(migrations, "STEPS", migrations.STEPS[:released])
            older.setattr(migrations, "NEWEST", released)
            migrations.migrate(empty)
        ids = [f"{number:016}" for number in range(3)]
        for key_id in ids:
            old_key(empty, key_id, clock.now)
        if "project" in tables(empty):
            run(empty, "INSERT INTO project (project_id, keys) VALUES ('acme', 3)")
        run(empty, """UPDATE api_key SET scopes = '["orders:read"]'""")
        if released >= 7:  # from 7 on, digests stay valid when columns are added
            empty.write_unserialized(m0007_evidence._record)

        assert migrations.migrate(empty) == list(range(released + 1, migrations.NEWEST + 1))
        fresh = new_store(new_database(dialect))
        assert tables(empty) == tables(fresh)
        assert made(empty) == made(fresh)
        for table in tables(fresh):
            assert columns_of(empty, table) == columns_of(fresh, table)
        fresh.close()

        domain = Domain(empty, clock)
        new = domain.create(scopes=("orders:read",)).key.id
        domain.revoke(ids[0])
        page = domain.listing.page(OPERATOR, Query(project_id="acme", scope="orders:read"))
        assert {key.id for key in page.keys} == {*ids, new}
        assert empty.read("SELECT keys FROM project WHERE project_id = 'acme'") == [(4,)]
        assert audit.run(empty, clock) == audit.Audit(8, (), removed=0, since=clock.now, keys=4)
        domain.close()

    def test_projects(self, empty: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys created before the count of a project existed are counted."""
        with monkeypatch.context() as older:
            older.setattr(migrations, "STEPS", migrations.STEPS[:1])
            older.setattr(migrations, "NEWEST", 1)
            migrations.migrate(empty)
        for number in range(3):
            old_key(empty, f"{number:016}", clock.now)
        migrations.migrate(empty)
        assert empty.read("SELECT * FROM project") == [("acme", 3)]
        domain = Domain(empty, clock)
        domain.create()
        domain.create(project_id="globex")
        assert empty.read("SELECT * FROM project ORDER BY project_id") == [("acme", 4), ("globex", 1)]
        domain.close()

    def test_scopes(self, empty: Store, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys older than the table of scopes are found by their scopes, however many batches the migration takes."""
        with monkeypatch.context() as older:
            older.setattr(migrations, "STEPS", migrations.STEPS[:3])
            older.setattr(migrations, "NEWEST", 3)
            migrations.migrate(empty)
        for number in range(7):
            old_key(empty, f"{number:016}", clock.now)
        run(empty, """UPDATE api_key SET scopes = '["a:*", "b"]' WHERE id <> '0000000000000003'""")
        monkeypatch.setattr(m0004_listing, "_BATCH", 2)

        assert migrations.migrate(empty)[0] == 4
        found = empty.read("SELECT scope, key_id, project_id, create_time FROM api_key_scope ORDER BY scope, key_id")
        ids = [f"{number:016}" for number in range(7) if number != 3]
        assert found == [(scope, key_id, "acme", clock.now) for scope in ("a:*", "b") for key_id in ids]
        domain = Domain(empty, clock)
        page = domain.listing.page(OPERATOR, Query(project_id="acme", scope="b", order_by="create_time asc"))
        domain.close()
        assert [key.id for key in page.keys] == ids


class TestCheck:
    """Whether a server may start."""

    def test_as_it_should_be(self, store: Store) -> None:
        """The current schema is accepted."""
        migrations.check(store)

    def test_empty(self, empty: Store) -> None:
        """An empty database is refused with a message that names the command to run."""
        with pytest.raises(SetupError, match="is empty: run `tumbler-server init`"):
            migrations.check(empty)

    def test_newer(self, store: Store) -> None:
        """A newer schema is refused with a message to upgrade the program."""
        run(store, "UPDATE schema_version SET version = 99")
        with pytest.raises(SetupError, match=f"schema 99, which is newer than the {migrations.NEWEST} .* upgrade"):
            migrations.check(store)

    def test_older(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """An older schema is refused with the command to run; a server never migrates by itself."""
        before = migrations.NEWEST
        monkeypatch.setattr(migrations, "NEWEST", before + 1)
        with pytest.raises(SetupError, match=f"schema {before}, .* needs {before + 1}: .*`tumbler-server migrate`"):
            migrations.check(store)
        assert migrations.current(store) == before

    def test_no_database(self, new_database: Callable[[str], str]) -> None:
        """A file that is not a database is reported as damaged, not as empty."""
        url = new_database("sqlite")
        file_of(url).write_bytes(b"this is no database " * 100)
        store = open_store(url)
        with pytest.raises(StoreUnavailable, match="is damaged") as failed:
            migrations.check(store)
        assert failed.value.said == "file is not a database (SQLITE_NOTADB)"

    def test_damaged(self, new_database: Callable[[str], str]) -> None:
        """A damaged database is reported as damaged, not as empty."""
        url = new_database("sqlite")
        new_store(url).close()
        content = file_of(url).read_bytes()
        file_of(url).write_bytes(content[:4_096] + b"\xff" * (len(content) - 4_096))
        store = open_store(url)
        with pytest.raises(StoreUnavailable, match="is damaged") as failed:
            migrations.check(store)
        assert failed.value.said == "database disk image is malformed (SQLITE_CORRUPT)"
        store.close()

    def test_forbidden(self, new_database: Callable[[str], str]) -> None:
        """A database that the user may not read is reported as refusing, not as empty."""
        url = new_database("postgresql")
        store = new_store(url)
        run(store, "DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        store.close()
        stranger = open_store(url.replace("postgres:@", "stranger:@", 1))
        with pytest.raises(StoreUnavailable, match="refuses this server") as failed:
            migrations.check(stranger)
        assert failed.value.said == "permission denied for table schema_version (42501)"
        stranger.close()


def test_two_installations_differ(dialect: str, new_database: Callable[[str], str]) -> None:
    """Each installation has its own secret."""
    secrets = set()
    for _ in range(2):
        store = new_store(new_database(dialect))
        secrets.add(bytes(store.read("SELECT token_secret FROM installation")[0][0]))
        store.close()
    assert len(secrets) == 2
