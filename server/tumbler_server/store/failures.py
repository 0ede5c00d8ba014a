"""Classification of driver errors: the cause of the trouble, and the database's own reason in one line."""

import errno
import os
import re
from typing import NamedTuple

import apsw
import peewee
import psycopg

from tumbler_server.errors import Cause, StoreUnavailable

_BY_STATE: tuple[tuple[str, Cause], ...] = (
    ("08", Cause.AWAY),
    ("25006", Cause.READ_ONLY),
    ("25", Cause.SLOW),  # includes 25P03: the transaction was idle too long
    ("28", Cause.REFUSED),
    ("3D000", Cause.REFUSED),
    ("40", Cause.SLOW),  # races lost at every attempt
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
"""Causes by prefix of the SQLSTATE, longer prefixes first if they overlap (PostgreSQL, Appendix A)."""

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
"""Causes by text. The driver has no SQLSTATE for a failed connection, only the server's text. These are English."""

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
    UnicodeDecodeError: Cause.DAMAGED,  # not UTF-8: SQLite does not check text
    TimeoutError: Cause.SLOW,
}

_NO_ROOM = frozenset({apsw.SQLITE_IOERR_SHMSIZE, apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_TRUNCATE})
"""Errors of writes for which the disk, a quota or a file size limit leaves no room, besides SQLITE_FULL.

Unless the system says otherwise; see ``_BY_ERRNO``.
"""

_BY_ERRNO = {
    errno.EROFS: Cause.READ_ONLY,
    errno.EACCES: Cause.REFUSED,
    errno.EPERM: Cause.REFUSED,
    errno.EIO: Cause.BROKEN,
}

_MISSING = frozenset({"42P01", "3F000"})  # no such table, no such schema

_LONGEST = 240

_LONG_ENOUGH = 4
"""Fewest characters of a password, as libpq reads it, that is redacted: a gap where an "a" was would reveal it."""

_QUOTED_ADDRESS = re.compile(r"""(["'])[^"']*@[^"']*\1""")


class Understood(NamedTuple):
    """A failure of the database: its cause, the SQLSTATE or SQLite's name for it, and the reason in one line."""

    cause: Cause
    code: str
    said: str


def sqlstate(failure: BaseException) -> str | None:
    """Return the SQLSTATE of a driver error, or None."""
    return getattr(_driver(failure), "sqlstate", None)


def is_missing_table(failure: BaseException) -> bool:
    """Return whether a failure means that a table or its schema is missing."""
    driver = _driver(failure)
    # Not the text of just any error: PostgreSQL's can contain what a caller sent.
    return sqlstate(failure) in _MISSING or (isinstance(driver, apsw.SQLError) and "no such table: " in str(driver))


def describe(failure: BaseException) -> str | None:
    """Return the database's message in one line, or None if the database did not raise the failure."""
    if isinstance(failure, peewee.PeeweeException | psycopg.Error | apsw.Error):
        return _said(_driver(failure), "")
    return None


def understand(failure: BaseException | None, password: str = "", system: int = 0) -> Understood | None:
    """Classify a failure of the database. Return None for a fault of ours, such as a wrong statement.

    The reason never contains ``password``, or anything that could be a part of a password. ``system`` is the errno of
    SQLite's last failed read or write of its files, or 0.
    """
    if failure is None:
        return None
    if isinstance(failure, StoreUnavailable):
        return understand(failure.__cause__, password, system) or Understood(failure.cause, "", failure.said)
    driver = _driver(failure)
    said = _said(driver, password)
    if isinstance(driver, apsw.Error):
        return _of_sqlite(driver, said, system)
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


def _of_sqlite(driver: apsw.Error, said: str, system: int) -> Understood | None:
    extended = getattr(driver, "extendedresult", 0)
    names = (apsw.mapping_extended_result_codes, apsw.mapping_result_codes)
    code = next((str(each[extended]) for each in names if extended in each), "")
    if isinstance(driver, apsw.IOError) and extended in _NO_ROOM:
        words = f"{said}: {os.strerror(system)}" if system else said
        return Understood(_BY_ERRNO.get(system, Cause.FULL), code, words)
    if isinstance(driver, apsw.CantOpenError) and _no_files_left():
        return Understood(Cause.NO_FILES, code, f"{said}: {os.strerror(errno.EMFILE)}")
    for kind, cause in _BY_KIND.items():
        if isinstance(driver, kind):
            return Understood(cause, code, said)
    return None


def _no_files_left() -> bool:
    """Return whether this process may open no more files."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as failure:
        return failure.errno in (errno.EMFILE, errno.ENFILE)
    return False


def _driver(failure: BaseException) -> BaseException:
    """Return the driver's error, which peewee wraps."""
    original = getattr(failure, "orig", None)
    return original if isinstance(original, BaseException) else failure


def _said(driver: BaseException, password: str) -> str:
    primary = getattr(getattr(driver, "diag", None), "message_primary", None)
    text = " ".join(str(primary or driver).strip().partition("\n")[0].split())  # further lines are hints
    if len(password) >= _LONG_ENOUGH:
        text = text.replace(password, "[redacted]")
    # libpq takes the rest of a password after an unescaped @ for part of the host name.
    text = _QUOTED_ADDRESS.sub("[redacted]", text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
