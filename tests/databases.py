"""Databases with their tables, made once in each test process: a SQLite file is copied, a PostgreSQL schema used again.

Making the tables costs PostgreSQL a tenth of a second, and emptying them a millisecond.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg

from tumbler_server.store import migrations
from tumbler_server.store.database import open_store

_BEGINNING = "tumbler_beginning"
"""The schema that has the rows of a new database."""

_SHAPE = """
    SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (
        SELECT concat_ws(' ', c.relname, c.relkind, c.relrowsecurity, a.attname, a.atttypid, a.attnotnull) AS line
        FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped AND a.attnum > 0
        WHERE c.relnamespace = current_schema()::regnamespace
        UNION ALL SELECT concat_ws(' ', conrelid::regclass, conname, contype) FROM pg_constraint
        WHERE connamespace = current_schema()::regnamespace
        UNION ALL SELECT concat_ws(' ', ev_class::regclass, rulename) FROM pg_rewrite r
        JOIN pg_class c ON c.oid = r.ev_class AND c.relnamespace = current_schema()::regnamespace
        UNION ALL SELECT concat_ws(' ', tgrelid::regclass, tgname, tgenabled) FROM pg_trigger t
        JOIN pg_class c ON c.oid = t.tgrelid AND c.relnamespace = current_schema()::regnamespace
        UNION ALL SELECT concat_ws(' ', polrelid::regclass, polname) FROM pg_policy p
        JOIN pg_class c ON c.oid = p.polrelid AND c.relnamespace = current_schema()::regnamespace
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
        UNION ALL SELECT nspacl::text FROM pg_namespace WHERE nspname = current_schema()
        UNION ALL SELECT concat_ws(' ', relname, relacl) FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace
    ) lines
"""
"""What a test may have changed besides rows: tables, columns, constraints, rules, triggers, policies, rights."""


class Files:
    """Copies of a SQLite file that has its tables and no keys."""

    def __init__(self, new: Callable[[], str]) -> None:
        """Prepare; ``new`` returns the URL of a new, empty database."""
        self._new = new
        self._first: Path | None = None

    def take(self) -> str:
        """Return the URL of a copy."""
        if self._first is None:
            url = self._new()
            _migrate(url)
            self._first = _file(url)
        url = self._new()
        shutil.copyfile(self._first, _file(url))
        return url


class Schemas:
    """Schemas of a PostgreSQL that have their tables and no keys."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._numbers = 0
        self._free: list[str] = []
        self._shape = ""
        self._tables: list[str] = []

    @contextmanager
    def lent(self) -> Iterator[str]:
        """Yield the URL of a schema. Afterwards it is emptied, and lent again if it has its shape."""
        if not self._shape:
            self._begin()
        schema = self._free.pop() if self._free else self._make()
        yield self._url(schema)
        if self._empty(schema):
            self._free.append(schema)

    def _begin(self) -> None:
        with self._connected() as connection:
            connection.execute(f"CREATE SCHEMA {_BEGINNING}")
        _migrate(self._url(_BEGINNING))
        with self._connected(_BEGINNING) as connection:
            named = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
            self._tables = [name for (name,) in connection.execute(named)]
            self._shape = self._shape_of(connection)

    def _make(self) -> str:
        self._numbers += 1
        schema = f"lent{self._numbers}"
        with self._connected() as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        _migrate(self._url(schema))
        return schema

    def _empty(self, schema: str) -> bool:
        """Put the rows of a new database back. Return whether that was possible."""
        rows = (
            f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {_BEGINNING}.{table}"  # noqa: S608 - our own names
            for table in self._tables
        )
        try:
            with self._connected(schema) as connection:
                if self._shape_of(connection) != self._shape:
                    return False
                connection.execute("SET lock_timeout = '1s'")
                connection.execute("BEGIN; " + "; ".join(rows) + "; COMMIT")
        except psycopg.Error:
            return False
        return True

    def _shape_of(self, connection: psycopg.Connection) -> str:
        row = connection.execute(_SHAPE).fetchone()
        return str(row and row[0])

    def _connected(self, schema: str = "public") -> psycopg.Connection:
        return psycopg.connect(self._url(schema), autocommit=True)

    def _url(self, schema: str) -> str:
        return f"{self._server}&options=-csearch_path%3D{schema}"


def _migrate(url: str) -> None:
    with closing(open_store(url, create=True)) as store:
        migrations.migrate(store)


def _file(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))
