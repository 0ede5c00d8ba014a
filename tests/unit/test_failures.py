"""Classifying what drivers raise."""

import errno
import os

import apsw
import peewee
import psycopg
import pytest

from tumbler_server.errors import Cause, StoreUnavailable, explain
from tumbler_server.store.failures import is_missing_table, understand

PASSWORD = "correct" + "horse"


def by_state(state: str) -> psycopg.Error:
    """Return the driver's exception for a SQLSTATE."""
    return psycopg.errors.lookup(state)("as the server says it")


STATES = {
    "08006": Cause.AWAY,
    "25006": Cause.READ_ONLY,
    "25P03": Cause.SLOW,
    "28P01": Cause.REFUSED,
    "3D000": Cause.REFUSED,
    "40001": Cause.SLOW,
    "42501": Cause.REFUSED,
    "53100": Cause.FULL,
    "53200": Cause.CROWDED,
    "53300": Cause.CROWDED,
    "55P03": Cause.SLOW,
    "57014": Cause.SLOW,
    "57P01": Cause.STOPPING,
    "57P02": Cause.STOPPING,
    "57P03": Cause.STOPPING,
    "57P04": Cause.REFUSED,
    "58030": Cause.BROKEN,
    "XX001": Cause.DAMAGED,
    "XX002": Cause.DAMAGED,
}

OURS = ("22P02", "23505", "42601", "42703", "42P01", "0A000")

CONNECTING = {
    'connection failed: connection to server at "::1", port 1 failed: Connection refused\n\tIs it running?': Cause.AWAY,
    'connection failed: FATAL:  password authentication failed for user "tumbler"': Cause.REFUSED,
    'connection failed: FATAL:  database "tumbler" does not exist': Cause.REFUSED,
    'connection failed: FATAL:  no pg_hba.conf entry for host "10.0.0.1"': Cause.REFUSED,
    "connection failed: FATAL:  sorry, too many clients already": Cause.CROWDED,
    "connection failed: FATAL:  remaining connection slots are reserved for superusers": Cause.CROWDED,
    "connection failed: FATAL:  the database system is starting up": Cause.STOPPING,
    "connection failed: FATAL:  the database system is shutting down": Cause.STOPPING,
    "connection failed: FATAL:  the database system is in recovery mode": Cause.STOPPING,
    "connection failed: ERROR:  no more connections allowed (max_client_conn)": Cause.CROWDED,
}

SQLITE = {
    apsw.FullError: Cause.FULL,
    apsw.ReadOnlyError: Cause.READ_ONLY,
    apsw.CantOpenError: Cause.REFUSED,
    apsw.CorruptError: Cause.DAMAGED,
    apsw.NotADBError: Cause.DAMAGED,
    apsw.BusyError: Cause.SLOW,
    apsw.InterruptError: Cause.SLOW,
}


@pytest.mark.parametrize("state", STATES)
def test_a_sqlstate(state: str) -> None:
    """PostgreSQL's SQLSTATE decides the cause, whether or not peewee has wrapped the exception."""
    for failure in (by_state(state), peewee.OperationalError(by_state(state)), peewee.InternalError(by_state(state))):
        found = understand(failure)
        assert found == (STATES[state], state, "as the server says it")


@pytest.mark.parametrize("state", OURS)
def test_a_fault_of_ours(state: str) -> None:
    """A wrong statement or a broken constraint is not a failure of the database."""
    assert understand(peewee.ProgrammingError(by_state(state))) is None


@pytest.mark.parametrize("text", CONNECTING)
def test_an_attempt_to_connect(text: str) -> None:
    """Without a SQLSTATE the server's text decides the cause, and it is reported on one line."""
    found = understand(psycopg.OperationalError(text))
    assert found is not None
    assert (found.cause, found.code) == (CONNECTING[text], "")
    assert "\n" not in found.said
    assert "\t" not in found.said


@pytest.mark.parametrize("kind", SQLITE)
def test_sqlite(kind: type[apsw.Error]) -> None:
    """SQLite's result code decides the cause."""
    found = understand(peewee.OperationalError(kind("as SQLite says it")))
    assert found is not None
    assert (found.cause, found.said) == (SQLITE[kind], "as SQLite says it")


def test_no_more_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be opened because the process has too many open is no refusal."""

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "as the test has it")

    monkeypatch.setattr("tumbler_server.store.failures.os.open", fail)
    found = understand(peewee.OperationalError(apsw.CantOpenError("unable to open database file")))
    monkeypatch.undo()
    assert found is not None
    assert (found.cause, found.said) == (Cause.NO_FILES, "unable to open database file: Too many open files")


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (0, Cause.FULL),
        (errno.EDQUOT, Cause.FULL),
        (errno.EFBIG, Cause.FULL),
        (errno.EROFS, Cause.READ_ONLY),
        (errno.EACCES, Cause.REFUSED),
        (errno.EIO, Cause.BROKEN),
    ],
)
def test_a_write_that_sqlite_only_says_failed(number: int, cause: Cause) -> None:
    """The system's own error tells a full disk from one that has become read-only, or fails."""
    failed = apsw.IOError("disk I/O error")
    failed.extendedresult = apsw.SQLITE_IOERR_WRITE
    found = understand(peewee.OperationalError(failed), system=number)
    assert found is not None
    assert (found.cause, found.code) == (cause, "SQLITE_IOERR_WRITE")
    assert found.said == ("disk I/O error" + (f": {os.strerror(number)}" if number else ""))


@pytest.mark.parametrize(
    "text",
    [
        f"failed to resolve host '{PASSWORD[3:]}@db.example.com': [Errno -2] Name or service not known",
        f'connection to server at "{PASSWORD}@db", port 5432 failed',
        f"invalid connection option {PASSWORD}",
    ],
)
def test_no_password(text: str) -> None:
    """A password is redacted in the reason, even if an unescaped @ made libpq take it for a host."""
    found = understand(psycopg.OperationalError(text), PASSWORD)
    assert found is not None
    assert PASSWORD[3:] not in found.said
    assert "[redacted]" in found.said


def test_the_first_reason_counts() -> None:
    """For a failure that wraps another, the database's own reason is reported."""
    failure = StoreUnavailable()
    failure.__cause__ = by_state("53100")
    assert understand(failure) == (Cause.FULL, "53100", "as the server says it")


@pytest.mark.parametrize(
    ("changed", "ending"),
    [("", "space left"), ("no", "; nothing was changed"), ("unknown", "; the change may or may not have been made")],
)
def test_what_a_caller_is_told(changed: str, ending: str) -> None:
    """A caller gets the cause and what became of a change, but not the database's text."""
    failure = StoreUnavailable(Cause.FULL, "No space left on device", changed)
    assert failure.message.endswith(ending)
    assert failure.detail == {"cause": "FULL", **({"changed": changed} if changed else {})}
    assert "device" not in failure.message


@pytest.mark.parametrize("cause", Cause)
def test_what_an_operator_is_told(cause: Cause) -> None:
    """Every cause has a description and a remedy for the operator, with the reason between them."""
    text = explain(StoreUnavailable(cause, "the reason"))
    assert text == f"{cause.told}: the reason. To fix it: {cause.mend}"
    assert cause.told
    assert cause.mend


def test_a_callers_text_is_no_missing_table() -> None:
    """PostgreSQL's errors can contain what a caller sent, so only SQLite's own error is known by its text."""
    sent = "duplicate key value: no such table: api_key"
    assert not is_missing_table(psycopg.errors.UniqueViolation(sent))
    assert not is_missing_table(apsw.ConstraintError(sent))
    assert is_missing_table(apsw.SQLError("no such table: api_key"))
    assert is_missing_table(psycopg.errors.UndefinedTable("relation is missing"))
