"""What is wrong with an installation, and how to mend it."""

import functools
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import peewee

from tumbler_server import founding
from tumbler_server.audit import audit
from tumbler_server.clock import DAY, HOUR, MINUTE, NEVER, SECOND, rfc3339, system_clock
from tumbler_server.config import Installation
from tumbler_server.errors import Cause, SetupError, StoreUnavailable
from tumbler_server.keys import operators
from tumbler_server.limits import MIB
from tumbler_server.scheduler import timekeeping
from tumbler_server.secrets import roster
from tumbler_server.store import migrations
from tumbler_server.store.database import SQLITE, Store, Transaction, open_store, sqlite_path
from tumbler_server.store.failures import describe
from tumbler_server.store.models import MODELS

LITTLE_ROOM = 100 * MIB
"""So few bytes on the database's disk are worth a warning."""

_ANOTHER = "tumbler-server operator-key --output FILE"

_SOON = 30 * DAY
"""How long before the last operator's key expires it is warned of."""

_RUNNING = 10 * MINUTE
"""A process that was seen so lately counts as one that serves."""

_SHOWN = 5

_WAIT = 5 * SECOND
"""How long to wait for other changes before the database counts as one that takes none."""

_CHANGES = "changes"

_WRITES = {
    "INSERT INTO {0} SELECT * FROM {0} WHERE false": (
        *("event", "api_key", "api_key_scope", "project", "request"),
        *("server", "webhook_endpoint", "webhook_delivery"),
    ),
    "UPDATE {0} SET {1} = {1} WHERE false": (
        *("log_head", "api_key", "project", "lease", "clock", "outbox"),
        *("server", "webhook_endpoint", "webhook_delivery"),
    ),
    "DELETE FROM {0} WHERE false": ("event", "api_key_scope", "server", "webhook_endpoint", "webhook_delivery"),
}
"""What servers do to tables. Done to no row, it fails where this user has no right to it."""

_SINGLE_ROWS = ("log_head", "installation", "lease", "clock", "outbox")
"""Tables whose one row is made with them."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``ok``, ``warning`` or ``wrong``."""

    severity: str
    subject: str
    found: str
    mend: str = ""


def examine(installation: Installation) -> list[Finding]:
    """Look at everything that a server needs, as far as what comes before allows.

    Changes nothing that anybody reads; that a change is possible is found out by one of nothing.
    """
    findings = [*_data_dir(installation), *_pepper(installation)]
    try:
        store = open_store(installation.database_url, timeout=HOUR)  # it reads everything
    except SetupError as failure:
        return [*findings, Finding("wrong", "database", str(failure), "tumbler-server init, or correct --database")]
    if store.dialect == SQLITE:
        findings.append(Finding("ok", "SQLite library", apsw.sqlite_lib_version()))
        findings.append(_room(sqlite_path(installation.database_url)))
    for step in (
        _schema,
        _changes,
        functools.partial(_operator_key, installation),
        _clock,
        functools.partial(_peppers, installation),
        _audit,
        functools.partial(_webhooks, installation),
    ):
        finding = _guarded(step, store)
        findings.append(finding)
        if finding.severity == "wrong" and finding.subject != _CHANGES:
            break
    store.close()
    return findings


def _data_dir(installation: Installation) -> Iterator[Finding]:
    if installation.database and installation.pepper:
        return
    try:
        mode = installation.data_dir.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = 0
    except OSError as failure:
        found = f"{installation.data_dir} cannot be entered: {failure.strerror}"
        yield Finding("wrong", "data folder", found, "run this as the user that runs the server")
        return
    if not stat.S_ISDIR(mode):
        yield Finding("wrong", "data folder", f"{installation.data_dir} does not exist", "tumbler-server init")
    elif mode & 0o077:
        mend = f"chmod 700 {installation.data_dir}"
        yield Finding("warning", "data folder", f"{installation.data_dir} is readable by other users", mend)
    else:
        yield Finding("ok", "data folder", str(installation.data_dir))


def _pepper(installation: Installation) -> Iterator[Finding]:
    try:
        peppers = installation.peppers()
    except (SetupError, OSError) as failure:
        yield Finding("wrong", "pepper file", str(failure), "restore it, or fix what the message names")
        return
    if peppers:
        yield Finding("ok", "pepper file", f"{len(peppers)} pepper(s), the newest is {peppers[0].id}")
    else:
        found = f"there is none at {installation.pepper_file}: each key costs one bcrypt run when first seen"
        yield Finding("warning", "pepper file", found, "restore the file that `init` made")


def _guarded(step: Callable[[Store], Finding], store: Store) -> Finding:
    try:
        return step(store)
    except StoreUnavailable as failure:
        return Finding("wrong", "database", f"{failure.message}: {failure.said}", failure.cause.mend)
    except SetupError as failure:
        return Finding("wrong", "database", str(failure))
    except (peewee.DatabaseError, TypeError, ValueError) as failure:
        found = f"it has unexpected content: {describe(failure) or type(failure).__name__}"
        return Finding("wrong", "database", found, Cause.DAMAGED.mend)


def _room(path: Path) -> Finding:
    left = shutil.disk_usage(path.parent).free
    if left < MIB:
        return Finding("wrong", "disk", f"the disk of {path} is full: changes fail", "free space on it")
    if left < LITTLE_ROOM:
        found = f"the disk of {path} has {left // MIB:,} MiB left: changes fail when it is full"
        return Finding("warning", "disk", found, "free space on it")
    return Finding("ok", "disk", f"{left // MIB:,} MiB are left")


def _schema(store: Store) -> Finding:
    migrations.check(store)
    if store.dialect == SQLITE:
        ((found,), *_) = store.read("PRAGMA quick_check(1)")
        if found != "ok":
            said = " ".join(str(found).split())
            return Finding("wrong", "database", f"it is damaged: {said}", Cause.DAMAGED.mend)
    for table in _SINGLE_ROWS:
        if not store.read(f"SELECT 1 FROM {table} WHERE id = 1"):  # noqa: S608 - a name of ours
            found = f"the row of the table {table} is gone"
            return Finding("wrong", "database", found, Cause.DAMAGED.mend)
    return Finding("ok", "database", f"{store.dialect}, schema {migrations.NEWEST}")


def _changes(store: Store) -> Finding:
    """Find out whether changes can be made, which reading does not show."""
    try:
        store.write_unserialized(_change_nothing, timeout=_WAIT)
    except StoreUnavailable as failure:
        return Finding("wrong", _CHANGES, f"{failure.cause.told}: {failure.said}", failure.cause.mend)
    return Finding("ok", _CHANGES, "the database takes them")


def _change_nothing(db: peewee.Database) -> None:
    Transaction(db, notifies=False).touch()
    columns = {model._meta.table_name: model._meta.sorted_fields[0].column_name for model in MODELS}
    for sql, tables in _WRITES.items():
        for table in tables:
            db.execute_sql(sql.format(table, columns[table]))


def _operator_key(installation: Installation, store: Store) -> Finding:
    subject, now = "operator's key", system_clock()
    working = operators.working(store, now)
    if not working.count:
        if not store.read("SELECT 1 FROM api_key LIMIT 1"):
            return Finding("wrong", subject, "there is none", "tumbler-server init")
        found = "none is usable: each is revoked, expired, inactive or replaced"
        try:
            founding.peppers_of(installation, store)
        except (SetupError, OSError):
            found += "; and the pepper file is not the one that signed this database's keys"
            return Finding("wrong", subject, found, f"restore the pepper file, then {_ANOTHER}")
        return Finding("wrong", subject, found, _ANOTHER)
    if working.bound == working.count:
        found = f"{working.count} active, all of them restricted to networks (allowed_cidrs)"
        return Finding("warning", subject, found, f"check that you can call from these, or make another: {_ANOTHER}")
    if working.until == NEVER:
        return Finding("ok", subject, f"{working.count} active, without expiry")
    found = f"{working.count} active, the last until {rfc3339(working.until)}"
    if working.until < now + _SOON:
        return Finding("warning", subject, found, f"make another before then: {_ANOTHER}")
    return Finding("ok", subject, found)


def _clock(store: Store) -> Finding:
    now, mark = system_clock(), timekeeping.read_mark(store)
    if not mark.time or timekeeping.believed(now, mark.time):
        return Finding("ok", "clock", f"it says {rfc3339(now)}")
    found = (
        f"it is {timekeeping.words(now, mark.time)} the installation's last known time, {rfc3339(mark.time)}: "
        "it has jumped, or no server has run since; until it is trusted, nothing is removed or announced"
    )
    mend = "correct it; if it is right, run `tumbler-server trust-clock`, or let a server run for a day"
    return Finding("warning", "clock", found, mend)


def _audit(store: Store) -> Finding:
    found = audit.run(store)
    if found:
        return Finding(
            "ok",
            "audit trail",
            f"{found.events:,} events match the hash chain, and {found.keys:,} keys match their events",
        )
    return Finding("wrong", "audit trail", "; ".join(found.problems), "restore a backup from before the change")


def _peppers(installation: Installation, store: Store) -> Finding:
    """Compare the pepper file with what servers that run know, and with what keys are signed under."""
    subject = "peppers in use"
    try:
        ours = [pepper.id for pepper in installation.peppers()]
    except (SetupError, OSError):
        return Finding("ok", subject, "not checked: the pepper file cannot be read")
    known = roster.known(store, since=system_clock() - _RUNNING)
    different = roster.differing(ours, known)
    if different:
        name, ids = min(different.items())
        found = (
            f"{len(different)} of {len(known)} serving processes have other peppers than this file, {_listed(ours)}; "
            f"{name} has {_listed(ids)}"
        )
        return Finding("warning", subject, found, "give all servers the same pepper file, and restart them")
    foreign = sorted(set(roster.signed_under(store)) - set(ours))
    if foreign:
        found = f"keys are signed with peppers that are not in the pepper file, {_listed(foreign)}: each costs bcrypt"
        return Finding("warning", subject, found, "restore them, or use the keys: each is signed again when it is used")
    return Finding("ok", subject, f"{len(known)} serving processes and all keys agree with the pepper file")


def _listed(pepper_ids: Sequence[str]) -> str:
    shown = ", ".join(pepper_ids[:_SHOWN]) or "none"
    return f"{shown} and {len(pepper_ids) - _SHOWN} more" if len(pepper_ids) > _SHOWN else shown


def _webhooks(installation: Installation, store: Store) -> Finding:
    try:
        known = {pepper.id for pepper in installation.peppers()}
    except (SetupError, OSError):
        known = set()  # that was told already
    rows = store.read("SELECT pepper_id, off_time FROM webhook_endpoint")
    lost = sum(1 for pepper_id, _ in rows if pepper_id not in known)
    off = sum(1 for _, off_time in rows if off_time != NEVER)
    if lost:
        found = f"the secrets of {lost} of {len(rows)} URLs are encrypted with a pepper that is not in the pepper file"
        return Finding("wrong", "webhooks", found, "restore it, or run `tumbler events rotate-secret URL` for each")
    if off:
        found = f"{off} of {len(rows)} URLs are off: their receivers answered 410"
        return Finding("warning", "webhooks", found, "set the webhook_url again, or run `tumbler events redeliver ID`")
    return Finding("ok", "webhooks", f"{len(rows)} URLs, none of them off")
