"""The databases that tests are given: made once, and as new each time."""

from contextlib import closing

import psycopg
import pytest

from tests.databases import Files, Schemas
from tests.domain import Domain
from tests.harness import FrozenClock
from tumbler_server.store.database import open_store


def test_a_copy_of_a_file_is_as_new(files: Files, clock: FrozenClock) -> None:
    """A SQLite file has its tables and no keys, whatever was done with others."""
    for _ in range(2):
        domain = Domain(open_store(files.take()), clock)
        assert domain.create().revision == 1
        domain.close()
        domain.store.close()


def test_a_schema_is_lent_again_as_new(schemas: Schemas, clock: FrozenClock) -> None:
    """A PostgreSQL schema is emptied, and lent again."""
    lent = []
    for _ in range(2):
        with schemas.lent() as url:
            lent.append(url)
            domain = Domain(open_store(url), clock)
            assert domain.create().revision == 1
            domain.close()
            domain.store.close()
    assert lent[0] == lent[1]


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE lease",
        "ALTER TABLE api_key ADD COLUMN more int",
        "ALTER TABLE api_key ENABLE ROW LEVEL SECURITY",
        "CREATE VIEW more AS SELECT 1",
        "CREATE RULE more AS ON UPDATE TO api_key DO INSTEAD NOTHING",
        "CREATE INDEX more ON api_key (name)",
    ],
)
def test_a_schema_that_was_changed_is_not_lent_again(schemas: Schemas, change: str) -> None:
    """A schema in which more than rows were changed is left alone."""
    with schemas.lent() as url:
        with closing(psycopg.connect(url, autocommit=True)) as connection:
            connection.execute(change)  # type: ignore[call-overload]  # these texts
        changed = url
    with schemas.lent() as url:
        assert url != changed


def test_a_schema_that_is_in_use_is_not_lent_again(schemas: Schemas) -> None:
    """A schema in which a transaction is open is left alone."""
    with schemas.lent() as url:
        holding = psycopg.connect(url)
        holding.execute("LOCK TABLE api_key")
        held = url
    with schemas.lent() as url:
        assert url != held
    holding.close()
