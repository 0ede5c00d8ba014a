"""Step 4: indexes for what List filters by, a table of the scopes that keys carry, and names in reach of SetActive."""

import time

import peewee

from tumbler_server import logs
from tumbler_server.clock import NEVER
from tumbler_server.store.database import COCKROACHDB, SQLITE

_BATCH = 10_000
"""Keys whose scopes are copied by one statement."""

_SAY_EVERY = 5.0
"""Seconds between two lines that say how far the copying has come."""

_STANDING = (
    f"CASE WHEN revoke_time <> {NEVER} THEN 4 WHEN replaced_by_key_id <> '' THEN 5 WHEN NOT active THEN 2 ELSE 1 END"
)

_ON_SQLITE = (
    # With the text that List searches, so that a search reads the index alone.
    "CREATE INDEX api_key_by_project_create_time ON api_key (project_id, create_time, id, search_text)",
    # The clock tells active keys from expired ones: by expire_time, here in the index.
    f"CREATE INDEX api_key_by_project_standing ON api_key (project_id, ({_STANDING}), create_time, id, expire_time)",
)
_ELSEWHERE = (
    "CREATE INDEX api_key_by_project_create_time ON api_key (project_id, create_time, id) INCLUDE (search_text)",
    # PostgreSQL reads an index alone only if that has the columns of which the expression is made, too.
    f"CREATE INDEX api_key_by_project_standing ON api_key (project_id, ({_STANDING}), create_time, id) "
    "INCLUDE (expire_time, revoke_time, replaced_by_key_id, active)",
)
_EVERYWHERE = (
    "CREATE INDEX api_key_by_project_environment ON api_key (project_id, environment_id, create_time, id)",
    "CREATE INDEX api_key_by_project_owner ON api_key (project_id, owner_id, create_time, id)",
    # Keys of a name that can still work are those beyond a grace_expire_time; SetActive looks for them.
    "CREATE INDEX api_key_by_name_in_use "
    "ON api_key (project_id, environment_id, name, revoke_time, grace_expire_time, id)",
)

# Triggers, and no statements of the service: whatever writes a key's scopes, by hand or in bulk, writes them here too.
_SQLITE_TRIGGERS = (
    """
    CREATE TRIGGER api_key_scope_inserted AFTER INSERT ON api_key WHEN NEW.scopes <> '[]' BEGIN
      INSERT OR IGNORE INTO api_key_scope (project_id, scope, create_time, key_id)
      SELECT NEW.project_id, value, NEW.create_time, NEW.id FROM json_each(NEW.scopes);
    END
    """,
    """
    CREATE TRIGGER api_key_scope_updated AFTER UPDATE OF scopes ON api_key WHEN NEW.scopes <> OLD.scopes BEGIN
      DELETE FROM api_key_scope
      WHERE project_id = OLD.project_id AND create_time = OLD.create_time AND key_id = OLD.id
        AND scope IN (SELECT value FROM json_each(OLD.scopes));
      INSERT OR IGNORE INTO api_key_scope (project_id, scope, create_time, key_id)
      SELECT NEW.project_id, value, NEW.create_time, NEW.id FROM json_each(NEW.scopes);
    END
    """,
)
_POSTGRESQL_TRIGGERS = (
    # With the search path of now: what restores a dump sets an empty one.
    """
    CREATE FUNCTION api_key_scope_write() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
    BEGIN
      IF TG_OP = 'UPDATE' THEN
        DELETE FROM api_key_scope
        WHERE project_id = OLD.project_id AND create_time = OLD.create_time AND key_id = OLD.id
          AND scope IN (SELECT json_array_elements_text(OLD.scopes::json));
      END IF;
      INSERT INTO api_key_scope (project_id, scope, create_time, key_id)
      SELECT NEW.project_id, scope, NEW.create_time, NEW.id FROM json_array_elements_text(NEW.scopes::json) AS scope
      ON CONFLICT DO NOTHING;
      RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER api_key_scope_inserted AFTER INSERT ON api_key
    FOR EACH ROW WHEN (NEW.scopes <> '[]') EXECUTE FUNCTION api_key_scope_write()
    """,
    """
    CREATE TRIGGER api_key_scope_updated AFTER UPDATE OF scopes ON api_key
    FOR EACH ROW WHEN (NEW.scopes <> OLD.scopes) EXECUTE FUNCTION api_key_scope_write()
    """,
)

_log = logs.get_logger(__name__)


def apply(dialect: str, db: peewee.Database) -> None:
    """Make the indexes, and the table with what the keys that are there carry."""
    db.execute_sql("DROP INDEX api_key_by_project_create_time")
    for statement in (*(_ON_SQLITE if dialect == SQLITE else _ELSEWHERE), *_EVERYWHERE):
        db.execute_sql(statement)
    by_code_point = "" if dialect in (SQLITE, COCKROACHDB) else ' COLLATE "C"'
    db.execute_sql(
        f"""
        CREATE TABLE api_key_scope (
          project_id TEXT NOT NULL,
          scope TEXT NOT NULL,
          create_time BIGINT NOT NULL,
          key_id VARCHAR(255){by_code_point} NOT NULL,
          PRIMARY KEY (project_id, scope, create_time, key_id)
        ){" WITHOUT ROWID" if dialect == SQLITE else ""}
        """
    )
    if dialect == COCKROACHDB:
        return  # older ones have no triggers: List looks at the keys themselves there
    _copy_scopes(dialect, db)
    for statement in _SQLITE_TRIGGERS if dialect == SQLITE else _POSTGRESQL_TRIGGERS:
        db.execute_sql(statement)


def _copy_scopes(dialect: str, db: peewee.Database) -> None:
    carried = "json_each(k.scopes) s" if dialect == SQLITE else "json_array_elements_text(k.scopes::json) AS s (value)"
    lateral = "" if dialect == SQLITE else " LATERAL"
    slot = db.param
    copy = f"""
        INSERT INTO api_key_scope (project_id, scope, create_time, key_id)
        SELECT DISTINCT k.project_id, s.value, k.create_time, k.id FROM api_key k CROSS JOIN{lateral} {carried}
        WHERE k.id > {slot} AND k.id <= {slot}
    """  # noqa: S608 - no input in it
    last = f"SELECT MAX(id), COUNT(*) FROM (SELECT id FROM api_key WHERE id > {slot} ORDER BY id LIMIT {_BATCH}) batch"  # noqa: S608
    place, done, said = "", 0, time.monotonic()
    while True:
        ((end, count),) = db.execute_sql(last, (place,)).fetchall()
        if not count:
            return
        db.execute_sql(copy, (place, end))
        place, done = end, done + count
        if time.monotonic() - said >= _SAY_EVERY:
            said = time.monotonic()
            _log.info("migrating: the scopes of keys are copied", keys=done)
