"""The schema's history: numbered steps, each applied once, under a lock, in one transaction with its number.

To add one, write ``m000N_….py`` with a function ``apply(dialect, db)`` and append the module to ``STEPS``. A step that
has been released is never edited.
"""

from types import ModuleType

import peewee

from tumbler_server.clock import HOUR
from tumbler_server.errors import SetupError
from tumbler_server.store.database import POSTGRESQL, POSTGRESQL_FLOOR, SQLITE, Store
from tumbler_server.store.failures import is_missing_table
from tumbler_server.store.migrations import (
    m0001_initial,
    m0002_anchor,
    m0003_rotation,
    m0004_listing,
    m0005_webhooks,
    m0006_projects,
    m0007_evidence,
    m0008_first_use,
    m0009_clock,
    m0010_leap,
)

STEPS: tuple[ModuleType, ...] = (
    m0001_initial,
    m0002_anchor,
    m0003_rotation,
    m0004_listing,
    m0005_webhooks,
    m0006_projects,
    m0007_evidence,
    m0008_first_use,
    m0009_clock,
    m0010_leap,
)

NEWEST = len(STEPS)

_LOCK = 0x74756D626C6572  # "tumbler": the advisory lock that PostgreSQL migrations take


def current(store: Store) -> int:
    """Return the number of the last step applied to the database; 0: none, it is empty.

    Raises ``StoreUnavailable`` where it does not answer, cannot be read, or is no database.
    """
    try:
        rows = store.read("SELECT version FROM schema_version WHERE id = 1")
    except peewee.DatabaseError as failure:
        if is_missing_table(failure):
            return 0
        raise
    if not rows:
        raise SetupError(
            "the row of schema_version with the id 1 is gone: restore it, or a backup that passes `audit verify`"
        )
    return int(rows[0][0])


def check(store: Store) -> None:
    """Raise ``SetupError``, which says what to do, unless the schema is exactly the one that this program knows."""
    found = current(store)
    if found == 0:
        raise SetupError("the database is empty: run `tumbler-server init` first")
    if found < NEWEST:
        raise SetupError(
            f"the database has schema {found}, this program needs {NEWEST}: back up, then run `tumbler-server migrate`"
        )
    if found > NEWEST:
        raise SetupError(
            f"the database has schema {found}, which is newer than the {NEWEST} that this program knows: "
            "upgrade tumbler-server"
        )


def migrate(store: Store) -> list[int]:
    """Apply the steps that are missing, and return their numbers. Concurrent callers wait for each other.

    Raises ``SetupError`` where the schema is newer than this program or has no number, or PostgreSQL is too old.
    """
    current(store)
    return store.write_unserialized(lambda db: _apply(store.dialect, db), timeout=HOUR)  # a table may be large


def _apply(dialect: str, db: peewee.Database) -> list[int]:
    if dialect == POSTGRESQL:
        if db.connection().info.server_version < POSTGRESQL_FLOOR:
            raise SetupError(f"PostgreSQL {POSTGRESQL_FLOOR // 10_000} or newer is needed")
        db.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    db.execute_sql("CREATE TABLE IF NOT EXISTS schema_version (id SMALLINT PRIMARY KEY, version INTEGER NOT NULL)")
    db.execute_sql("INSERT INTO schema_version (id, version) VALUES (1, 0) ON CONFLICT (id) DO NOTHING")
    lock = "" if dialect == SQLITE else " FOR UPDATE"
    ((found,),) = db.execute_sql(f"SELECT version FROM schema_version WHERE id = 1{lock}").fetchall()  # noqa: S608
    if found > NEWEST:
        raise SetupError(f"the database has schema {found}, newer than this program's {NEWEST}: upgrade tumbler-server")
    missing = list(range(found + 1, NEWEST + 1))
    for number in missing:
        STEPS[number - 1].apply(dialect, db)
    if missing:
        db.execute_sql(f"UPDATE schema_version SET version = {NEWEST} WHERE id = 1")  # noqa: S608
    return missing
