"""The doctor's findings on operators' keys and on changes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import CHEAP
from tumbler_server import doctor, founding
from tumbler_server.clock import DAY, NEVER, rfc3339, system_clock
from tumbler_server.config import Installation
from tumbler_server.secrets import pepper
from tumbler_server.store.database import open_store

ANOTHER = "tumbler-server operator-key --output FILE"
FAR = system_clock() + 400 * DAY
SOON = system_clock() + 3 * DAY
NOBODY = 65_534
ONE, ALL = " WHERE name = 'operator'", ""

DOCTOR: dict[str, tuple[str, str, str, str, str]] = {
    "one revoked": ("revoke_time = 5", ONE, "ok", "1 active, without expiry", ""),
    "one narrower": ("scopes = '[\"tumbler:keys:*\"]'", ONE, "ok", "1 active, without expiry", ""),
    "one soon to expire": (f"expire_time = {SOON}", ONE, "ok", "2 active, without expiry", ""),
    "all to expire": (f"expire_time = {FAR}", ALL, "ok", f"2 active, the last until {rfc3339(FAR)}", ""),
    "all soon to expire": (f"expire_time = {SOON}", ALL, "warning", f"the last until {rfc3339(SOON)}", ANOTHER),
    "one bound to networks": ("allowed_cidrs = '[\"10.0.0.0/8\"]'", ONE, "ok", "2 active, without expiry", ""),
    "all bound to networks": ("allowed_cidrs = '[\"10.0.0.0/8\"]'", ALL, "warning", "all of them restricted", ANOTHER),
    "all expired": ("expire_time = 5", ALL, "wrong", "none is usable", ANOTHER),
    "all revoked": ("revoke_time = 5", ALL, "wrong", "none is usable", ANOTHER),
    "all switched off": ("active = false", ALL, "wrong", "none is usable", ANOTHER),
    "all superseded": (
        f"replaced_by_key_id = 'x', grace_expire_time = {NEVER - 1}",
        *(ALL, "wrong", "none is usable", ANOTHER),
    ),
    "all narrower": ("scopes = '[\"*\"]'", ALL, "wrong", "none is usable", ANOTHER),
}


@pytest.fixture
def installation(database_url: str, tmp_path: Path) -> Installation:
    """Return an installation with two operators' keys on each kind of database."""
    installation = Installation(tmp_path / "data", database_url)
    founding.found(installation, CHEAP, "tmb")
    founding.make_operator_key(installation, CHEAP, "tmb", "operator", revoke_others=False, keep=lambda _: None)
    return installation


def told(installation: Installation, *changes: str) -> doctor.Finding:
    """Return the finding on operators' keys after manual changes of the database."""
    store = open_store(installation.database_url)
    for change in changes:
        store.write_unserialized(lambda db, sql=change: db.execute_sql(sql))
    store.close()
    (finding,) = [each for each in doctor.examine(installation) if each.subject == "operator's key"]
    return finding


@pytest.mark.parametrize("case", DOCTOR)
def test_it_looks_for_one_that_works(case: str, installation: Installation) -> None:
    """The doctor counts the usable operators' keys, reports when the last expires, and names the remedy."""
    change, which, severity, found, mend = DOCTOR[case]
    finding = told(installation, f"UPDATE api_key SET {change}{which}")  # noqa: S608 - from the table above
    assert (finding.severity, found in finding.found, mend in finding.mend) == (severity, True, True), finding


def test_an_installation_as_it_was_made(installation: Installation) -> None:
    """For a new installation the finding has the number of keys, and that they do not expire."""
    assert told(installation).found == "2 active, without expiry"


def test_a_database_without_any_key(installation: Installation) -> None:
    """If there is no key at all, the remedy is init."""
    finding = told(installation, "DELETE FROM api_key")
    assert (finding.severity, finding.mend) == ("wrong", "tumbler-server init")


@pytest.mark.parametrize("lost", [True, False])
def test_no_way_back_without_the_pepper(installation: Installation, lost: bool) -> None:
    """Where operator-key would refuse the pepper file, the doctor says to restore that first."""
    installation.pepper_file.unlink()
    if not lost:
        pepper.create(installation.pepper_file)
    finding = told(installation, "UPDATE api_key SET revoke_time = 5")
    assert finding.mend == f"restore the pepper file, then {ANOTHER}"
    assert "the pepper file is not the one that signed this database's keys" in finding.found


def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    """A data folder that this user may not see into is a finding, not a failure of the doctor."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o700)
    root = os.geteuid() == 0  # who may enter whatever the mode
    if root:
        os.seteuid(NOBODY)
    else:
        locked.chmod(0)
    try:
        findings = {each.subject: each for each in doctor.examine(Installation(locked / "data"))}
    finally:
        if root:
            os.seteuid(0)
        else:
            locked.chmod(0o700)
    assert findings["data folder"].severity == "wrong"
    assert findings["data folder"].found.endswith("cannot be entered: Permission denied")
    assert findings["database"].severity == "wrong"


def row(installation: Installation) -> doctor.Finding:
    """Return the finding on changes."""
    (finding,) = [each for each in doctor.examine(installation) if each.subject == "changes"]
    return finding


def test_a_database_that_takes_changes(installation: Installation) -> None:
    """The doctor tries a change that changes nothing, and reports success."""
    finding = row(installation)
    assert (finding.severity, finding.found) == ("ok", "the database takes them")


def test_a_file_that_cannot_be_written(new_database: Callable[[str], str], tmp_path: Path) -> None:
    """A SQLite file of mode 0400 is reported as read-only, and the other checks still run."""
    folder = Path(new_database("sqlite").removeprefix("sqlite:///")).with_suffix(".folder")
    folder.mkdir(mode=0o700)
    url = f"sqlite:///{folder}/tumbler.db"
    founding.found(Installation(tmp_path / "data", url), CHEAP, "tmb")
    (folder / "tumbler.db").chmod(0o400)
    root = os.geteuid() == 0  # root may write whatever the mode
    if root:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, -1)
        os.seteuid(NOBODY)
    try:
        findings = {each.subject: each for each in doctor.examine(Installation(folder, url))}
    finally:
        if root:
            os.seteuid(0)
    assert findings["changes"].severity == "wrong"
    assert "the database is read-only: " in findings["changes"].found
    assert "its files are writable" in findings["changes"].mend
    assert "operator's key" in findings


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("ALTER ROLE {role} SET default_transaction_read_only = on", "read-only transaction"),
        ("REVOKE UPDATE ON api_key FROM {role}", "permission denied for table api_key"),
        ("REVOKE INSERT ON api_key FROM {role}", "permission denied for table api_key"),
        ("REVOKE INSERT ON event FROM {role}", "permission denied for table event"),
    ],
)
def test_postgresql_without_rights(new_database: Callable[[str], str], tmp_path: Path, how: str, found: str) -> None:
    """If PostgreSQL refuses changes by this user, the finding has its reason and the remedy."""
    url = new_database("postgresql")
    installation = Installation(tmp_path / "data", url)
    founding.found(installation, CHEAP, "tmb")
    admin, role = open_store(url), "doctor" + url.partition("/test")[2].partition("?")[0]
    for sql in ("CREATE ROLE {role} LOGIN", "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}", how):
        admin.write_unserialized(lambda db, sql=sql: db.execute_sql(sql.format(role=role)))
    admin.close()
    finding = row(Installation(tmp_path / "data", url.replace("postgres:@", f"{role}:@", 1)))
    assert (finding.severity, found in finding.found, bool(finding.mend)) == ("wrong", True, True), finding


@pytest.mark.parametrize("table", ["installation", "lease", "clock", "outbox", "log_head"])
def test_a_row_that_is_made_with_its_table_is_gone(installation: Installation, table: str) -> None:
    """Where the one row of a table is gone, the doctor names the table."""
    store = open_store(installation.database_url)
    store.write_unserialized(lambda db: db.execute_sql(f"DELETE FROM {table}"))  # noqa: S608
    store.close()
    (finding,) = [each for each in doctor.examine(installation) if each.severity == "wrong"]
    assert finding.found == f"the row of the table {table} is gone"


def test_a_leaked_key_that_no_index_names(installation: Installation) -> None:
    """`operator-key --revoke-others` goes by the keys' own scopes: a row that is gone beside them hides none."""
    store = open_store(installation.database_url)
    store.write_unserialized(lambda db: db.execute_sql("DELETE FROM api_key_scope"))
    made = founding.make_operator_key(installation, CHEAP, "tmb", "new", revoke_others=True, keep=lambda _: None)
    assert len(made.revoked) == 2
    assert store.read("SELECT COUNT(*) FROM api_key WHERE revoke_time = ?", (NEVER,)) == [(1,)]
    store.close()
