"""The `tumbler-server` command as operators use it: init, audit, doctor, migrate and pepper."""

import json
import random
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.domain import Domain
from tests.e2e.service import Service, eventually, plain_environment
from tests.harness import FrozenClock
from tumbler import keyformat
from tumbler_server.clock import rfc3339
from tumbler_server.store import migrations
from tumbler_server.store.database import open_store


def mode(path: Path) -> int:
    """Return a file's permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def doctor(service: Service) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code of ``doctor`` and its findings by subject."""
    examined = service.command("doctor", "--json")
    return examined.returncode, {finding["subject"]: finding for finding in json.loads(examined.stdout)}


def test_init_prints_the_first_key_alone(tmp_path: Path) -> None:
    """`init` prints only the first key on stdout, so that it can be piped to a secret store."""
    service = Service(tmp_path / "data")
    founded = service.command("init")
    assert founded.returncode == 0
    assert keyformat.is_well_formed(founded.stdout.removesuffix("\n"))
    assert founded.stdout.strip() not in founded.stderr
    assert str(tmp_path / "data" / "pepper") in founded.stderr


def test_what_init_makes_is_for_its_owner_alone(tmp_path: Path) -> None:
    """The data folder, the pepper file and the database that `init` makes are readable only by their owner."""
    data_dir = tmp_path / "data"
    service = Service(data_dir).init()
    assert mode(data_dir) == 0o700
    assert mode(data_dir / "pepper") == 0o600
    service.start()
    service.create()
    files = {path.name: mode(path) for path in data_dir.iterdir()}
    assert {"pepper", "tumbler.db", "tumbler.db-wal"} <= files.keys()
    assert {name for name, permissions in files.items() if permissions & 0o077} == set()
    service.close()


def test_a_database_elsewhere_is_for_its_owner_alone(tmp_path: Path) -> None:
    """A SQLite database outside the data folder is readable only by its owner, too."""
    Service(tmp_path / "data", f"sqlite:////{str(tmp_path / 'keys.db').lstrip('/')}").init()
    assert mode(tmp_path / "keys.db") == 0o600


def test_a_second_init_is_refused_and_changes_nothing(installed: Service) -> None:
    """A second `init` is refused and leaves the first key and the pepper unchanged."""
    pepper = installed.pepper_file.read_bytes()
    refused = installed.command("init")
    assert refused.returncode == 1
    assert "there is already an installation" in refused.stderr
    assert refused.stdout == ""
    assert installed.pepper_file.read_bytes() == pepper
    assert installed.read("SELECT COUNT(*) FROM api_key") == [(1,)]
    assert installed.start().verdict(installed.key) == "VALID"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data folder of an installation in which two keys were created and revoked."""
    service = Service(tmp_path_factory.mktemp("history") / "data").init().start()
    for _ in range(2):
        service.revoke(service.create().api_key.id)
    assert service.stop() == 0
    service.close()
    return service.data_dir


def test_an_audit_of_an_untouched_log_is_fine(installed: Service) -> None:
    """An audit of an intact log reports the number of events and keys that it checked, also as JSON."""
    installed.start()
    for _ in range(3):
        installed.revoke(installed.create().api_key.id)
    audit = installed.command("audit", "verify")
    assert (audit.returncode, audit.stdout) == (
        0,
        "ok: 7 events match the hash chain, and 4 keys match their events\n",
    )
    as_json = installed.command("audit", "verify", "--json")
    found = json.loads(as_json.stdout)
    ((since,),) = installed.read("SELECT time FROM event WHERE revision = 1")
    assert found.pop("since") == rfc3339(since)
    counts = {"events": 7, "from_revision": 1, "removed": 0, "keys": 4, "keys_untold": 0}
    assert found == {"ok": True, **counts, "problems": []}


def test_a_copy_of_the_log_shows_what_the_log_forgot(installed: Service, tmp_path: Path) -> None:
    """`audit verify --against` compares the log with an export or an `audit head` line, and reports each difference."""
    installed.start()
    installed.revoke(installed.create().api_key.id)
    head = installed.command("audit", "head").stdout
    exported = installed.command("audit", "export").stdout
    events = [json.loads(line) for line in exported.splitlines()]
    assert [event["type"] for event in events] == ["CREATED", "CREATED", "REVOKED"]
    assert head == f"event 3 sha256:{events[-1]['hash']} at {events[-1]['time']}\n"
    assert events[-1]["client_address"] == "127.0.0.1"
    installed.create()
    copy = tmp_path / "copy"
    copy.write_text(exported + head)
    fine = installed.command("audit", "verify", "--against", str(copy))
    assert (fine.returncode, fine.stdout.splitlines()[-1]) == (
        0,
        "the copy: 4 lines match the log; 0 are of events that are no longer kept",
    )
    early = installed.command("audit", "verify", "--against", str(copy), "--event-retention", "400d")
    assert (early.returncode, early.stdout) == (0, fine.stdout)
    newer = [json.loads(line) for line in installed.command("audit", "export", "--after", "3").stdout.splitlines()]
    assert [event["revision"] for event in newer] == [4]
    copy.write_text(head.replace("event 3", "event 30") + exported.replace(events[1]["hash"], "0" * 64) + "{}\n")
    wrong = installed.command("audit", "verify", "--against", str(copy))
    assert (wrong.returncode, wrong.stdout.splitlines()) == (
        1,
        [
            "line 5 of the copy is not from `audit export` or `audit head`",
            "the copy has event 30; the log ends with event 4",
            "event 2 differs from the copy",
        ],
    )


@pytest.mark.parametrize(
    ("tampering", "noticed"),
    [
        ("UPDATE event SET actor_name = 'somebody else' WHERE revision = 3", "event 3 "),
        ("UPDATE event SET time = time - 1 WHERE revision = 2", "event 2 "),
        ("DELETE FROM event WHERE revision = 3", "events 3 to 3 are missing"),
        ("DELETE FROM event WHERE revision = 5", "events 5 to 5 are missing"),
        ("DELETE FROM event", "events 1 to 5 are missing"),
        ("UPDATE api_key SET revoke_time = 9223372036854775807", "was changed without an event: revoke_time"),
        ("UPDATE api_key SET revision = revision - 1 WHERE revision = 5", "was changed without an event"),
        ("DELETE FROM api_key WHERE revision = 5", "has events but is gone"),
        ("UPDATE log_head SET hash = (SELECT hash FROM event WHERE revision = 1)", "head"),
    ],
)
def test_tampering_with_the_database_is_noticed(history: Path, tmp_path: Path, tampering: str, noticed: str) -> None:
    """If the log is changed, or a key without an event, an audit reports the problem and exits with 1."""
    service = Service(shutil.copytree(history, tmp_path / "data"))
    service.tamper(tampering)
    audit = service.command("audit", "verify", "--json")
    assert audit.returncode == 1
    found = json.loads(audit.stdout)
    assert found["ok"] is False
    assert noticed in "\n".join(found["problems"])


@pytest.mark.parametrize(
    "tampering",
    [
        "DELETE FROM log_head",
        "UPDATE log_head SET revision = 'x'",
        "UPDATE log_head SET hash = 'x'",
        "UPDATE event SET time = 'x'",
        "UPDATE event SET detail = '{'",
        "UPDATE event SET hash = 'x'",
    ],
)
def test_what_no_program_writes_is_told_in_a_line(history: Path, tmp_path: Path, tampering: str) -> None:
    """If the log holds invalid values, audit commands report them without a traceback, after their earlier findings."""
    service = Service(shutil.copytree(history, tmp_path / "data"))
    copy = tmp_path / "copy"
    copy.write_text(service.command("audit", "export").stdout)
    service.tamper(tampering)
    for command in ("head", "export"):
        told = service.command("audit", command)
        assert told.returncode == 0 or told.stderr.count("\n") == 1, told.stderr
    alone = service.command("audit", "verify")
    both = service.command("audit", "verify", "--against", str(copy))
    assert (alone.returncode, alone.stderr, both.returncode, both.stderr) == (1, "", 1, "")
    assert both.stdout.startswith(alone.stdout)
    assert len(both.stdout) > len(alone.stdout)
    assert service.command("audit", "verify", "--json").stderr == ""


@pytest.mark.parametrize("command", ["head", "export"])
def test_a_copy_that_cannot_be_written_is_no_success(embedded: Service, command: str) -> None:
    """With a closed stdout, what would write a copy of the log fails, and says why."""
    program = [embedded.python, "-m", "tumbler_server", "audit", command, *embedded.where]
    ran = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *program],
        stderr=subprocess.PIPE,
        text=True,
        env=plain_environment(),
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "tumbler-server: stdout is closed, so nothing would be written\n")


def test_a_failed_audit_is_told_to_people(embedded: Service) -> None:
    """A failed audit describes the problem in plain words."""
    embedded.tamper("UPDATE event SET actor_name = 'somebody else'")
    audit = embedded.command("audit", "verify")
    assert (audit.returncode, audit.stderr) == (1, "")
    assert audit.stdout.startswith("event 1 was changed")


def test_the_doctor_finds_nothing_wrong_with_a_new_installation(installed: Service) -> None:
    """The doctor finds nothing wrong after `init`, in text and in JSON."""
    code, findings = doctor(installed)
    assert code == 0
    assert {finding["severity"] for finding in findings.values()} == {"ok"}
    told = installed.command("doctor")
    assert told.returncode == 0
    assert "audit trail" in told.stdout


def test_the_doctor_warns_of_a_missing_pepper(embedded: Service) -> None:
    """If the pepper file is missing, the doctor only warns that each key costs bcrypt, and the server works."""
    embedded.pepper_file.unlink()
    code, findings = doctor(embedded)
    assert code == 0
    assert findings["pepper file"]["severity"] == "warning"
    assert "bcrypt" in findings["pepper file"]["found"]
    assert embedded.start().verdict(embedded.key) == "VALID"


def test_the_doctor_warns_of_a_data_folder_that_others_can_read(embedded: Service) -> None:
    """If others can read the data folder, the doctor gives the command that fixes it."""
    embedded.data_dir.chmod(0o755)
    code, findings = doctor(embedded)
    assert (code, findings["data folder"]["severity"]) == (0, "warning")
    assert findings["data folder"]["mend"] == f"chmod 700 {embedded.data_dir}"


def test_a_pepper_file_that_others_can_read_is_refused(embedded: Service) -> None:
    """If others can read the pepper file, the doctor reports it as wrong, and the server does not start."""
    embedded.pepper_file.chmod(0o640)
    code, findings = doctor(embedded)
    assert (code, findings["pepper file"]["severity"]) == (1, "wrong")
    refused = embedded.command("serve", "--listen", "127.0.0.1:0")
    assert refused.returncode == 1
    assert "chmod 600" in refused.stderr


def test_the_doctor_says_that_nothing_was_founded(tmp_path: Path) -> None:
    """Without an installation, the doctor reports the database and the data folder as wrong, and creates nothing."""
    service = Service(tmp_path / "data")
    code, findings = doctor(service)
    assert code == 1
    assert findings["database"]["severity"] == findings["data folder"]["severity"] == "wrong"
    assert not (tmp_path / "data").exists()


def test_the_doctor_says_that_the_database_does_not_answer(tmp_path: Path) -> None:
    """If the database server is unreachable, the doctor says so."""
    nobody = f"postgresql://nobody@/nothing?host={tmp_path}"
    code, findings = doctor(Service(tmp_path / "data", nobody))
    assert code == 1
    assert "does not answer" in findings["database"]["found"]


def test_the_doctor_finds_what_an_audit_finds(embedded: Service) -> None:
    """If the audit trail was changed, the doctor reports it."""
    embedded.tamper("UPDATE event SET detail = '{}', actor_name = 'nobody'")
    code, findings = doctor(embedded)
    assert (code, findings["audit trail"]["severity"]) == (1, "wrong")


def test_a_file_that_is_no_database_is_called_damaged(embedded: Service) -> None:
    """If the database file was overwritten, the doctor reports it as wrong, and the server does not start."""
    for path in embedded.data_dir.glob("tumbler.db*"):
        path.write_bytes(b"this is not a database, however long it may be " * 100)
    code, findings = doctor(embedded)
    assert (code, findings["database"]["severity"]) == (1, "wrong")
    refused = embedded.command("serve", "--listen", "127.0.0.1:0")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


PASSWORD = "correct" + "horse"

AWAY = {
    "nobody listens": ("postgresql://someone:{0}@127.0.0.1:1/nothing", "Connection refused"),
    "no such host": ("postgresql://someone:{0}@nowhere.invalid/nothing", "failed to resolve host"),
    "an @ in the password": ("postgresql://someone:a@{0}@127.0.0.1:1/nothing", "failed to resolve host"),
    "no such folder": ("sqlite:////nowhere/at/all/tumbler.db", "unable to open database file (SQLITE_CANTOPEN)"),
}


@pytest.mark.parametrize(
    "command", [("serve", "--listen", "127.0.0.1:0"), ("init",), ("migrate",), ("audit", "verify")]
)
@pytest.mark.parametrize("how", AWAY)
def test_why_the_database_does_not_answer_is_said(embedded: Service, how: str, command: tuple[str, ...]) -> None:
    """If the database is unreachable, each command says in one line why and what to do, without the password."""
    url, reason = AWAY[how]
    if url.startswith("sqlite") and command != ("init",):
        pytest.skip("there the file must exist")
    refused = embedded.run(*command, "--data-dir", str(embedded.data_dir), "--database", url.format(PASSWORD))
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if "pepper" not in line]
    assert line.startswith("tumbler-server: the database ")
    assert reason in line
    assert "To fix it: " in line
    assert PASSWORD not in refused.stderr + refused.stdout


@pytest.mark.parametrize("command", [("audit", "verify"), ("doctor",)])
def test_damaged_pages_are_told_in_lines(embedded: Service, tmp_path: Path, command: tuple[str, ...]) -> None:
    """On a database with damaged pages, `audit verify` and `doctor` report their findings without a traceback."""
    store = open_store(embedded.database_url)
    domain = Domain(store, FrozenClock())
    for _ in range(40):
        domain.create(metadata={"note": "x" * 900})
    domain.close()
    store.close()
    assert embedded.command(*command).returncode == 0
    whole = (embedded.data_dir / "tumbler.db").read_bytes()

    def damaged(seed: int) -> tuple[int, str]:
        chance, content = random.Random(seed), bytearray(whole)  # noqa: S311 - no secret
        for _ in range(3):
            at = chance.randrange(4_096, len(content) - 600)
            content[at : at + 600] = chance.randbytes(600)
        folder = tmp_path / str(seed)
        folder.mkdir(mode=0o700)
        (folder / "tumbler.db").write_bytes(content)
        shutil.copy(embedded.pepper_file, folder / "pepper")
        done = embedded.run(*command, "--data-dir", str(folder))
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    with ThreadPoolExecutor(2) as threads:
        ends = list(threads.map(damaged, range(8)))
    assert 1 in {code for code, _ in ends} <= {0, 1}  # an audit does not read every page
    assert all(text.strip() for _, text in ends)


@pytest.mark.parametrize("command", [("init",), ("serve", "--listen", "127.0.0.1:0")])
def test_what_the_system_refuses_is_said_in_a_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    """If the data folder cannot be made because a file is in its place, the error is one line without a traceback."""
    (tmp_path / "data").write_text("")
    refused = Service(tmp_path / "data").command(*command)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1
    assert refused.stderr.startswith("tumbler-server: ")


def test_migrating_an_up_to_date_database_changes_nothing(installed: Service) -> None:
    """On an up-to-date database, `migrate` says that there is nothing to do, however often it runs."""
    for _ in range(2):
        migrated = installed.command("migrate")
        assert migrated.returncode == 0
        assert "Nothing to do" in migrated.stderr
    assert installed.start().verdict(installed.key) == "VALID"


def test_migrating_an_empty_database_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    """`migrate` refuses an empty database and names `init`."""
    if empty_database_url.startswith("sqlite"):
        Path("/" + empty_database_url.removeprefix("sqlite:////")).touch()
    refused = Service(tmp_path / "data", empty_database_url).command("migrate")
    assert refused.returncode == 1
    assert "tumbler-server init" in refused.stderr


@pytest.mark.parametrize("command", [("serve", "--listen", "127.0.0.1:0"), ("migrate",), ("audit", "verify")])
def test_a_newer_schema_is_left_alone(embedded: Service, command: tuple[str, ...]) -> None:
    """An older program refuses a database that a newer one has migrated, leaves it unchanged, and says to upgrade."""
    embedded.tamper("UPDATE schema_version SET version = version + 1")
    refused = embedded.command(*command)
    assert refused.returncode == 1
    assert "newer than" in refused.stderr
    assert "upgrade" in refused.stderr
    assert embedded.read("SELECT version FROM schema_version") == [(migrations.NEWEST + 1,)]


@pytest.mark.skipif(migrations.NEWEST < 2, reason="there is only one schema so far")
def test_an_older_schema_is_not_served(embedded: Service) -> None:
    """The server refuses a database with an older schema and says to migrate."""
    embedded.tamper("UPDATE schema_version SET version = version - 1")
    refused = embedded.command("serve", "--listen", "127.0.0.1:0")
    assert refused.returncode == 1
    assert "tumbler-server migrate" in refused.stderr


def test_after_a_pepper_rotation_every_key_works_and_is_signed_anew(installed: Service) -> None:
    """After a pepper rotation and a restart, keys are rehashed on use, and then work without the old pepper."""
    installed.start()
    made = installed.create()

    def signers() -> set[str]:
        return {pepper_id for (pepper_id,) in installed.read("SELECT pepper_id FROM api_key")}

    (oldest,) = signers()
    rotated = installed.run("pepper", "rotate", "--data-dir", str(installed.data_dir))
    assert rotated.returncode == 0
    assert mode(installed.pepper_file) == 0o600
    assert installed.verdict(made.key) == "VALID"  # the running server has only the old pepper

    installed.restart()
    assert installed.verdict(made.key) == "VALID"
    eventually(lambda: oldest not in signers())
    (newest,) = signers()
    assert newest in rotated.stderr

    header, first, *others = installed.pepper_file.read_text().splitlines()
    assert len(others) == 1
    installed.pepper_file.write_text(f"{header}\n{first}\n")
    installed.restart()
    assert installed.verdict(made.key) == "VALID"


def test_a_lost_pepper_locks_nobody_out(installed: Service) -> None:
    """If the pepper file is lost and replaced, every key still works, by its bcrypt hash."""
    installed.start()
    made = installed.create()
    installed.pepper_file.unlink()
    installed.restart()
    assert "there is no pepper file" in installed.stderr
    assert installed.verdict(made.key) == "VALID"
    assert installed.verdict(installed.create().key) == "VALID"


def test_a_new_pepper_file_takes_the_place_of_a_lost_one(installed: Service, tmp_path: Path) -> None:
    """`pepper rotate --create` makes a file; after one verified key it also serves to make an operator's key."""
    output = str(tmp_path / "new.key")
    create = ("pepper", "rotate", "--create", "--data-dir", str(installed.data_dir))
    assert "already exists" in installed.run(*create).stderr
    installed.start()
    made = installed.create()
    installed.pepper_file.unlink()
    assert "`tumbler-server pepper rotate --create`" in installed.command("operator-key", "--output", output).stderr
    created = installed.run(*create)
    assert (created.returncode, installed.pepper_file.stat().st_mode & 0o777) == (0, 0o600), created.stderr
    installed.restart()
    assert installed.command("operator-key", "--output", output).returncode == 1
    assert installed.verdict(made.key) == "VALID"
    eventually(lambda: installed.command("operator-key", "--output", output).returncode == 0)


def test_rotating_a_pepper_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Rotating a pepper file that does not exist is refused in one line without a traceback."""
    refused = Service(tmp_path / "data").command("pepper", "rotate")
    assert refused.returncode == 1
    assert "no pepper file" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("serve", "--listen", "nowhere"),
        ("serve", "--cache-ttl", "soon"),
        ("serve", "--bcrypt-cost", "3"),
        ("serve", "--log-level", "loud"),
        ("serve", "--default-prefix", "UPPER"),
        ("serve", "--threads", "0"),
    ],
)
def test_a_flag_that_makes_no_sense_is_a_misuse(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """An invalid value of a flag is a usage error that names the flag."""
    misused = Service(tmp_path).command(*flags)
    assert misused.returncode == 2
    assert flags[1] in misused.stderr


def test_a_database_url_of_no_known_form_is_refused(tmp_path: Path) -> None:
    """A database URL of an unknown kind is refused with the list of the three known kinds."""
    refused = Service(tmp_path / "data", "mysql://localhost/keys").command("serve")
    assert refused.returncode == 1
    for kind in ("sqlite:///", "postgresql://", "cockroachdb://"):
        assert kind in refused.stderr


def test_the_password_of_a_database_is_never_printed(postgresql: str, tmp_path: Path) -> None:
    """No database error prints the URL's password."""
    password = "hunter2-is-my-password"
    service = Service(tmp_path / "data", postgresql.replace("postgres:@", f"nobody:{password}@"))
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(service.database_url).close()
    for command in (("serve", "--listen", "127.0.0.1:0"), ("doctor",), ("init",)):
        failed = service.command(*command)
        assert failed.returncode == 1
        assert password not in failed.stdout + failed.stderr
        assert "Traceback" not in failed.stderr
