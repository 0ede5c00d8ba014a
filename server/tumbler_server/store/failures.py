"""What drivers raise, understood: which kind of trouble it is, and the database's own reason in one line."""

import re
from typing import NamedTuple

import apsw
import peewee
import psycopg

from tumbler_server.errors import Cause, StoreUnavailable

_BY_STATE: tuple[tuple[str, Cause], ...] = (
    ("08", Cause.AWAY),
    ("25006", Cause.READ_ONLY),
    ("25", Cause.SLOW),  # among them 25P03: a transaction that stood still too long
    ("28", Cause.REFUSED),
    ("3D000", Cause.REFUSED),
    ("40", Cause.SLOW),  # races that were lost again and again
    ("42501", Cause.REFUSED),
    ("53100", Cause.FULL),
    ("53", Cause.CROWDED),
    ("55", Cause.SLOW),
    ("57014", Cause.SLOW),
    ("57P04", Cause.REFUSED),
    ("57P", Cause.STOPPING),
    ("58", Cause.BROKEN),
    ("XX001", Cause.DAMAGED),
    ("XX002", Cause.DAMAGED),
)
"""By the beginning of a SQLSTATE, the longer ones first where they overlap (PostgreSQL, Appendix A)."""

_BY_TEXT: tuple[tuple[str, Cause], ...] = (
    ("too many clients", Cause.CROWDED),
    ("connection slots", Cause.CROWDED),
    ("too many connections", Cause.CROWDED),
    ("no more connections", Cause.CROWDED),
    ("starting up", Cause.STOPPING),
    ("shutting down", Cause.STOPPING),
    ("recovery mode", Cause.STOPPING),
    ("authentication failed", Cause.REFUSED),
    ("no pg_hba.conf entry", Cause.REFUSED),
    ("does not exist", Cause.REFUSED),
    ("not permitted to log in", Cause.REFUSED),
    ("permission denied", Cause.REFUSED),
    ("no password supplied", Cause.REFUSED),
)
"""Of an attempt to connect the driver has no SQLSTATE; its text is the server's, where that speaks English."""

_BY_KIND: dict[type[BaseException], Cause] = {
    apsw.FullError: Cause.FULL,
    apsw.ReadOnlyError: Cause.READ_ONLY,
    apsw.CantOpenError: Cause.REFUSED,
    apsw.PermissionsError: Cause.REFUSED,
    apsw.AuthError: Cause.REFUSED,
    apsw.CorruptError: Cause.DAMAGED,
    apsw.NotADBError: Cause.DAMAGED,
    apsw.FormatError: Cause.DAMAGED,
    apsw.IOError: Cause.BROKEN,
    apsw.BusyError: Cause.SLOW,
    apsw.LockedError: Cause.SLOW,
    apsw.InterruptError: Cause.SLOW,
    apsw.ProtocolError: Cause.SLOW,
    UnicodeDecodeError: Cause.DAMAGED,  # a text that is none: SQLite does not look
    TimeoutError: Cause.SLOW,
}

_NO_ROOM = frozenset({apsw.SQLITE_IOERR_SHMSIZE, apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_TRUNCATE})
"""Writes that fail where the disk, a quota or a limit on files leaves no room, and are not called SQLITE_FULL."""

_MISSING = frozenset({"42P01", "3F000"})  # no such table, no such schema

_LONGEST = 240

_LONG_ENOUGH = 4
"""Characters of a password, or of what libpq takes for one: a gap where an "a" was would tell what it is."""

_QUOTED_ADDRESS = re.compile(r"""(["'])[^"']*@[^"']*\1""")


class Understood(NamedTuple):
    """A failure of the database's: its kind, the SQLSTATE or SQLite's name for it, and its reason in one line."""

    cause: Cause
    code: str
    said: str


def sqlstate(failure: BaseException) -> str | None:
    """Return the SQLSTATE of what the driver raised, where there is one."""
    return getattr(_driver(failure), "sqlstate", None)


def is_missing_table(failure: BaseException) -> bool:
    """Say whether a table or its schema is not there."""
    return sqlstate(failure) in _MISSING or "no such table" in str(_driver(failure))


def describe(failure: BaseException) -> str | None:
    """Return in one line what the database says, of whatever it raised; None where it did not raise that."""
    if isinstance(failure, peewee.PeeweeException | psycopg.Error | apsw.Error):
        return _said(_driver(failure), "")
    return None


def understand(failure: BaseException | None, password: str = "") -> Understood | None:
    """Return what a failure says of the database; None where it is a fault of ours, as a wrong statement is.

    ``password`` is never in what it says, nor what could be a part of one.
    """
    if failure is None:
        return None
    if isinstance(failure, StoreUnavailable):
        return understand(failure.__cause__, password) or Understood(failure.cause, "", failure.said)
    driver = _driver(failure)
    said = _said(driver, password)
    if isinstance(driver, apsw.Error):
        return _of_sqlite(driver, said)
    for kind, cause in _BY_KIND.items():
        if isinstance(driver, kind):
            return Understood(cause, "", said)
    state = sqlstate(failure)
    if state is not None:
        found = next((cause for start, cause in _BY_STATE if state.startswith(start)), None)
        if found is None and isinstance(driver, psycopg.OperationalError):
            found = Cause.AWAY
        return None if found is None else Understood(found, state, said)
    if isinstance(driver, psycopg.OperationalError | psycopg.InterfaceError | OSError) or isinstance(
        failure, peewee.OperationalError | peewee.InterfaceError
    ):
        return Understood(next((cause for text, cause in _BY_TEXT if text in said), Cause.AWAY), "", said)
    return None


def _of_sqlite(driver: apsw.Error, said: str) -> Understood | None:
    extended = getattr(driver, "extendedresult", 0)
    names = (apsw.mapping_extended_result_codes, apsw.mapping_result_codes)
    code = next((str(each[extended]) for each in names if extended in each), "")
    if isinstance(driver, apsw.IOError) and extended in _NO_ROOM:
        return Understood(Cause.FULL, code, said)
    for kind, cause in _BY_KIND.items():
        if isinstance(driver, kind):
            return Understood(cause, code, said)
    return None


def _driver(failure: BaseException) -> BaseException:
    """Return what the driver raised, which peewee wraps."""
    original = getattr(failure, "orig", None)
    return original if isinstance(original, BaseException) else failure


def _said(driver: BaseException, password: str) -> str:
    primary = getattr(getattr(driver, "diag", None), "message_primary", None)
    text = " ".join(str(primary or driver).strip().partition("\n")[0].split())  # what follows are hints
    if len(password) >= _LONG_ENOUGH:
        text = text.replace(password, "[redacted]")
    # A password with an @ that was not escaped is taken for a part of the host's name.
    text = _QUOTED_ADDRESS.sub("[redacted]", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
