"""Bulk insertion of millions of keys into a database, without the server.

The rows are as the server would write them, with two exceptions. They have no events. Keys with a digest all share one
bcrypt hash, of another secret, since a million hashes would take a day. If the server did not use the digest, it would
refuse such a key, so a measurement cannot silently measure bcrypt.
"""

import hmac
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw
import psycopg

from tumbler import keyformat
from tumbler_server.clock import DAY, NEVER, SECOND, system_clock
from tumbler_server.defaults import BCRYPT_COST
from tumbler_server.keys import record
from tumbler_server.keys.record import Key
from tumbler_server.secrets import pepper
from tumbler_server.secrets.secret import HashedSecret, Hasher
from tumbler_server.store.models import ApiKeyRow

PROJECT = "acme"
SCOPES = ("orders:read", "orders:write", "customers:read")
ASKED = "orders:read"
"""The scope that verifications ask for."""

_SCRAMBLE = 2_654_435_761
"""Knuth's multiplier: it makes the order of names unrelated to the order of creation."""

Vary = Callable[[int, Key], Key]

_DIGITS = bytes(keyformat.ALPHABET[number % 62].encode()[0] for number in range(256))
_COLUMNS = [column.column_name for column in ApiKeyRow._meta.sorted_fields]


def texts(count: int, prefix: str = "bench") -> Iterator[str]:
    """Yield key texts. Fast, and good enough for keys that guard nothing."""
    length = keyformat.ID_LENGTH + keyformat.SECRET_LENGTH
    for _ in range(count):
        digits = os.urandom(length).translate(_DIGITS).decode()
        before = f"{prefix}_{digits[: keyformat.ID_LENGTH]}_{digits[keyformat.ID_LENGTH :]}"
        yield before + keyformat.checksum(before)


def add_digested(
    url: str, pepper_file: Path, keys: Iterable[str], elsewhere: float = 0.0, vary: Vary = lambda _, key: key
) -> None:
    """Add keys with digests. A share of them, ``elsewhere``, belongs to a hundred other projects.

    ``vary`` takes each key's number and the key, and returns the key to insert.
    """
    newest = pepper.load(pepper_file)[0]
    (other,) = texts(1)
    hashed = Hasher(BCRYPT_COST, [newest]).hash(other, keyformat.parse(other).secret).secret_hash

    def sealed(text: str) -> HashedSecret:
        return HashedSecret(hashed, hmac.digest(newest.secret, text.encode(), "sha256"), newest.id)

    _insert(url, _rows(keys, sealed, elsewhere, vary))


def add_undigested(url: str, keys: Sequence[str]) -> None:
    """Add keys without digests, which only bcrypt verifies, at its default cost."""
    hasher = Hasher(BCRYPT_COST)

    def seal(text: str) -> HashedSecret:
        return hasher.hash(text, keyformat.parse(text).secret)

    with ThreadPoolExecutor() as pool:
        sealed = dict(zip(keys, pool.map(seal, keys), strict=True))
    _insert(url, _rows(keys, sealed.__getitem__, 0.0))


def _rows(
    keys: Iterable[str], seal: Any, elsewhere: float, vary: Vary = lambda _, key: key
) -> Iterator[tuple[Any, ...]]:
    chance = random.Random(1)  # noqa: S311 - no secret
    now = system_clock()
    for number, text in enumerate(keys):
        parsed = keyformat.parse(text)
        project = f"other-{chance.randrange(100)}" if chance.random() < elsewhere else PROJECT
        key = Key(
            id=parsed.id,
            project_id=project,
            environment_id="live",
            name=f"service {number * _SCRAMBLE % 2**32:08x}",
            key_prefix=parsed.key_prefix,
            owner_id=f"owner-{number % 1_000}",
            scopes=SCOPES,
            metadata={"team": f"team-{number % 50}", "plan": "standard"},
            create_time=now - 365 * DAY + number * SECOND,
            update_time=now - 365 * DAY + number * SECOND,
            # As in practice, many keys share a value: they never expire, or were never used.
            expire_time=NEVER if chance.random() < 0.5 else now + DAY + chance.randrange(365 * DAY),
            last_used_time=0 if chance.random() < 0.25 else now - chance.randrange(30 * DAY),
            revision=1,
        )
        sealed = seal(text)
        columns = {
            **record.to_columns(vary(number, key)),
            "secret_hash": sealed.secret_hash,
            "digest": sealed.digest,
            "pepper_id": sealed.pepper_id,
            "alarm_time": NEVER,  # no alarm may be due during a measurement
        }
        yield tuple(columns[name] for name in _COLUMNS)


def _insert(url: str, rows: Iterator[tuple[Any, ...]]) -> None:
    names = ", ".join(_COLUMNS)
    if url.startswith("sqlite"):
        connection = apsw.Connection(url.removeprefix("sqlite:///"))
        connection.set_busy_timeout(30_000)  # milliseconds: a server may be writing
        connection.execute("PRAGMA synchronous = off; PRAGMA cache_size = -400000")
        slots = ", ".join("?" * len(_COLUMNS))
        connection.execute("BEGIN IMMEDIATE")  # a read that turns into a write would fail beside a writing server
        with connection:
            waiting = _put_off(connection)
            connection.executemany(f"INSERT INTO api_key ({names}) VALUES ({slots})", rows)  # noqa: S608
            for statement in waiting:
                connection.execute(statement)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return
    with psycopg.connect(url, autocommit=True) as database:
        with database.transaction():
            waiting = _put_off_postgresql(database)
            with database.cursor().copy(f"COPY api_key ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            for statement in waiting:
                database.execute(statement)
        database.execute("VACUUM ANALYZE api_key, api_key_scope")  # what autovacuum does within minutes


# An empty table is filled in a third of the time without indexes and triggers. They are created afterwards.

_FEW = 1_000


def _put_off(connection: apsw.Connection) -> list[str]:
    """Drop the indexes and triggers of a nearly empty table. Return statements that recreate them and fill the rest."""
    ((count,),) = connection.execute("SELECT COUNT(*) FROM (SELECT 1 FROM api_key LIMIT ?)", (_FEW,))
    if count == _FEW:
        return []
    made = list(
        connection.execute(
            "SELECT type, name, sql FROM sqlite_schema WHERE tbl_name = 'api_key' AND type IN ('index', 'trigger') "
            "AND sql IS NOT NULL"
        )
    )
    for kind, name, _ in made:
        connection.execute(f"DROP {kind} {name}")
    carried = "SELECT k.project_id, s.value, k.create_time, k.id FROM api_key k, json_each(k.scopes) s"
    return [f"INSERT OR IGNORE INTO api_key_scope {carried} ORDER BY 1, 2, 3, 4", *(sql for _, _, sql in made)]


def _put_off_postgresql(database: "psycopg.Connection[Any]") -> list[str]:
    ((count,),) = database.execute("SELECT COUNT(*) FROM (SELECT 1 FROM api_key LIMIT %s) few", (_FEW,))
    if count == _FEW:
        return []
    made = database.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'api_key' AND indexname <> 'api_key_pkey'"
    ).fetchall()
    for name, _ in made:
        database.execute(f"DROP INDEX {name}")
    database.execute("ALTER TABLE api_key DISABLE TRIGGER USER")
    carried = "SELECT k.project_id, s, k.create_time, k.id FROM api_key k, json_array_elements_text(k.scopes::json) s"
    return [
        f"INSERT INTO api_key_scope {carried} ORDER BY 1, 2, 3, 4 ON CONFLICT DO NOTHING",
        *(sql for _, sql in made),
        "ALTER TABLE api_key ENABLE TRIGGER USER",
    ]
