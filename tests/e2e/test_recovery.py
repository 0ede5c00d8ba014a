"""Recovery from an operator's key that is lost, revoked or leaked, and from a key that could not be shown."""

import os
import shlex
import signal
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.service import PATIENCE, Service, eventually, plain_environment
from tests.harness import Refused
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.secrets import pepper

COMMAND = "tumbler-server operator-key"


def shell(service: Service, *arguments: str, redirect: str) -> subprocess.CompletedProcess[str]:
    """Run a ``tumbler-server`` command in a shell, with a redirection."""
    command = shlex.join([service.python, "-m", "tumbler_server", *arguments, *service.where])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirect}"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=plain_environment(),
    )


def works(service: Service, key: str) -> bool:
    """Return whether a key may list the keys of the reserved project."""
    try:
        service.connect(key).call("List", pb.ListRequest(project_id="tumbler"))
    except Refused as refused:
        if refused.reason != "UNAUTHENTICATED":
            raise
        return False
    return True


class TestOperatorKey:
    """``tumbler-server operator-key``."""

    def test_a_lost_key_is_replaced_while_servers_run(self, installed: Service, tmp_path: Path) -> None:
        """`operator-key` replaces a lost key, and a running server accepts the new one at once."""
        installed.start()
        file = tmp_path / "operator.key"
        made = installed.command("operator-key", "--output", str(file), "--name", "after the fire")
        assert (made.returncode, made.stdout) == (0, ""), made.stderr
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        key = file.read_text().removesuffix("\n")
        assert keyformat.is_well_formed(key)
        assert key not in made.stderr
        assert works(installed, key)
        assert works(installed, installed.key), "nothing was said of the old one"
        record = installed.get(keyformat.parse(key).id)
        assert (record.name, record.project_id, list(record.scopes)) == ("after the fire", "tumbler", ["tumbler:*"])
        installed.audit()

    def test_the_audit_trail_names_the_command(self, installed: Service) -> None:
        """The event of the new key names the command as its actor."""
        made = installed.command("operator-key")
        key_id = keyformat.parse(made.stdout.strip()).id
        events = installed.read("SELECT type, key_id, actor_key_id, actor_name FROM event ORDER BY revision")
        assert events[1:] == [(1, key_id, "", COMMAND)]
        assert installed.read("SELECT created_by_name FROM api_key WHERE id = ?", key_id) == [(COMMAND,)]

    def test_leaked_keys_end_with_it(self, installed: Service, tmp_path: Path) -> None:
        """With --revoke-others, every other operator's key is revoked, each with its event.

        Keys with fewer scopes and keys of other projects stay.
        """
        installed.start()
        ended = [installed.create(project_id="tumbler", scopes=["tumbler:*"]) for _ in range(3)]
        installed.set_active(ended[0].api_key.id, False)
        gone = installed.create(project_id="tumbler", scopes=["tumbler:*"])
        installed.revoke(gone.api_key.id, comment="before")
        stays = [
            installed.create(project_id="tumbler", scopes=["tumbler:keys:*", "*"]),
            installed.create(project_id="acme", scopes=["tumbler:*"]),
        ]
        watch = installed.connect(stays[0].key).watch(project_id="tumbler").opened()
        file = tmp_path / "operator.key"
        made = installed.command("operator-key", "--revoke-others", "--output", str(file))
        assert made.returncode == 0, made.stderr
        new = keyformat.parse(file.read_text().strip()).id
        ids = [keyformat.parse(installed.key).id, *(each.api_key.id for each in ended)]
        told = watch.events(5)  # in log order
        assert [(event.type, event.key_id) for event in told] == [(1, new), *((5, key_id) for key_id in ids)]
        assert {event.actor.name for event in told} == {COMMAND}
        assert {event.detail["reason"] for event in told[1:]} == {"superseded"}
        assert all(key_id in made.stderr for key_id in ids)
        for key in (installed.key, *(each.key for each in ended)):
            eventually(lambda key=key: not works(installed, key))
        assert works(installed, file.read_text().strip())
        operator = installed.connect(file.read_text().strip())
        assert [operator.state(each.api_key.id) for each in stays] == ["ACTIVE", "ACTIVE"]
        assert operator.get(gone.api_key.id).revoke_comment == "before"
        installed.audit()

    def test_every_process_learns_of_it(self, installed: Service, tmp_path: Path) -> None:
        """Workers and other servers refuse the old key and accept the new one, which another process made."""
        installed.start("--workers", "2")
        other = installed.beside()
        try:
            assert works(installed, installed.key)
            assert works(other, installed.key)
            made = installed.command("operator-key", "--revoke-others", "--output", str(tmp_path / "key"))
            assert made.returncode == 0, made.stderr
            for service in (installed, other):
                eventually(lambda service=service: not works(service, installed.key))
                assert works(service, (tmp_path / "key").read_text().strip())
        finally:
            other.close()

    def test_no_project_is_too_full_for_it(self, embedded: Service) -> None:
        """`operator-key` works even if the reserved project has its maximum of keys."""
        embedded.tamper("UPDATE project SET keys = 2000000")
        assert embedded.command("operator-key").returncode == 0

    @pytest.mark.parametrize("trouble", ["no pepper", "another pepper", "a pepper others read", "older schema"])
    def test_it_is_refused(self, installed: Service, tmp_path: Path, trouble: str) -> None:
        """Without the pepper of this database, or with another schema, the command changes nothing and says why."""
        if trouble == "no pepper":
            installed.pepper_file.unlink()
            said = ["there is no pepper file", "needs the database and the pepper file"]
        elif trouble == "another pepper":
            installed.pepper_file.unlink()
            pepper.create(installed.pepper_file)
            said = ["does not belong to this database", "needs the database and the pepper file"]
        elif trouble == "a pepper others read":
            installed.pepper_file.chmod(0o644)
            said = ["chmod 600"]
        else:
            installed.tamper("UPDATE schema_version SET version = version - 1")
            said = ["tumbler-server migrate"]
        refused = installed.command("operator-key", "--revoke-others", "--output", str(tmp_path / "new.key"))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "Traceback" not in refused.stderr
        for words in said:
            assert words in refused.stderr
        assert not (tmp_path / "new.key").exists()
        assert installed.read("SELECT COUNT(*) FROM event") == [(1,)]

    @pytest.mark.parametrize("migrated", [False, True])
    def test_where_nothing_was_founded(self, database_url: str, tmp_path: Path, migrated: bool) -> None:
        """`operator-key` refuses a database without an installation and names `init`."""
        service = Service(tmp_path / "data", database_url)
        if migrated:
            service.init()
            service.tamper("DELETE FROM event", "DELETE FROM api_key")
        refused = service.command("operator-key", "--output", str(tmp_path / "new.key"))
        assert refused.returncode == 1
        assert "tumbler-server init" in refused.stderr
        assert not (tmp_path / "new.key").exists()

    def test_peppers_that_were_rotated_count(self, installed: Service) -> None:
        """After a pepper rotation, before any key is rehashed, the pepper file still counts as the database's."""
        assert installed.run("pepper", "rotate", "--data-dir", str(installed.data_dir)).returncode == 0
        assert installed.command("operator-key").returncode == 0

    def test_a_name_that_breaks_the_rule_is_a_misuse(self, embedded: Service, tmp_path: Path) -> None:
        """A name that breaks the rule is a usage error, and no file is left."""
        misused = embedded.command("operator-key", "--name", "ab", "--output", str(tmp_path / "new.key"))
        assert misused.returncode == 2
        assert "--name" in misused.stderr
        assert not (tmp_path / "new.key").exists()
        assert embedded.read("SELECT COUNT(*) FROM event") == [(1,)]


class TestOutput:
    """``--output`` of init and operator-key, and keys that cannot be shown."""

    def test_init_into_a_file(self, tmp_path: Path) -> None:
        """`init --output` writes the first key to a file of mode 0600, and no secret to stdout or stderr."""
        service, file = Service(tmp_path / "data"), tmp_path / "first-key"
        made = service.command("init", "--output", str(file))
        assert (made.returncode, made.stdout) == (0, "")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        key = file.read_text().strip()
        assert keyformat.parse(key).secret not in made.stderr
        service.key = key
        assert service.start().verdict(key) == "VALID"
        service.close()

    @pytest.mark.parametrize("umask", ["000", "777"])
    def test_whatever_the_umask_is(self, tmp_path: Path, umask: str) -> None:
        """The file has mode 0600 under every umask."""
        service, file = Service(tmp_path / "data"), tmp_path / "first-key"
        command = shlex.join([service.python, "-m", "tumbler_server", "init", "--output", str(file), *service.where])
        subprocess.run(
            ["sh", "-c", f"umask {umask}; {command}"], check=True, capture_output=True, env=plain_environment()
        )
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    @pytest.mark.parametrize("there", ["a file", "a dangling link", "a folder"])
    def test_what_is_there_stays(self, embedded: Service, tmp_path: Path, there: str) -> None:
        """A path that exists is refused and left as it is, and nothing else changes."""
        path = tmp_path / "key"
        if there == "a file":
            path.write_text("the key in use")
        elif there == "a folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / "elsewhere")
        for command in (embedded, Service(tmp_path / "new data")):
            arguments = ["operator-key"] if command is embedded else ["init"]
            refused = command.command(*arguments, "--output", str(path))
            assert (refused.returncode, refused.stdout) == (1, "")
            assert "already exists and is not overwritten. Nothing was changed" in refused.stderr
        if there == "a file":
            assert path.read_text() == "the key in use"
        assert not (tmp_path / "elsewhere").exists()
        assert not (tmp_path / "new data").exists()
        assert embedded.read("SELECT COUNT(*) FROM event") == [(1,)]

    @pytest.mark.parametrize("path", ["no-folder/key", "/dev/full/key"])
    def test_a_file_that_cannot_be_begun(self, tmp_path: Path, path: str) -> None:
        """An output file that cannot be created is refused before anything is made."""
        service = Service(tmp_path / "data")
        refused = service.command("init", "--output", str(tmp_path / path))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "cannot be written" in refused.stderr
        assert "Nothing was changed" in refused.stderr
        assert not service.data_dir.exists()

    def test_a_second_init_into_a_file_leaves_none(self, installed: Service, tmp_path: Path) -> None:
        """A refused `init` names `operator-key`, removes its output file and leaves the pepper unchanged."""
        before = installed.pepper_file.read_bytes()
        refused = installed.command("init", "--output", str(tmp_path / "second"))
        assert refused.returncode == 1
        assert "`tumbler-server operator-key --output FILE` makes another" in refused.stderr
        assert not (tmp_path / "second").exists()
        assert installed.pepper_file.read_bytes() == before

    @pytest.mark.parametrize("stdout", ["a full disk", "a pipe whose reader has gone", "open for reading only"])
    def test_a_first_key_that_cannot_be_shown(self, database_url: str, tmp_path: Path, stdout: str) -> None:
        """If the first key cannot be printed, `init` fails, says that the installation exists, and names the remedy."""
        service = Service(tmp_path / "data", database_url)
        if stdout == "a pipe whose reader has gone":
            lost = piped(service)
        else:
            lost = shell(service, "init", redirect="> /dev/full" if stdout == "a full disk" else "1< /dev/null")
        assert lost.returncode == 1
        assert "the installation was made, but its key could not be shown" in lost.stderr
        assert "`tumbler-server operator-key --output FILE` makes another" in lost.stderr
        assert "Traceback" not in lost.stderr
        assert "Exception ignored" not in lost.stderr
        again = service.command("operator-key", "--revoke-others", "--output", str(tmp_path / "key"))
        assert again.returncode == 0, again.stderr
        service.key = (tmp_path / "key").read_text().strip()
        assert works(service.start(), service.key)
        service.close()

    def test_an_operator_key_that_cannot_be_shown(self, embedded: Service) -> None:
        """If the new key cannot be printed, the error gives its ID, so that it can be revoked."""
        lost = shell(embedded, "operator-key", redirect="> /dev/full")
        ((key_id,),) = embedded.read("SELECT id FROM api_key WHERE created_by_name = ?", COMMAND)
        assert lost.returncode == 1
        assert f"the key {key_id} was made, but its key could not be shown" in lost.stderr

    def test_a_command_that_is_terminated_leaves_no_file(self, tmp_path: Path) -> None:
        """SIGTERM before a key is made removes the file that was begun for it, so that the command can be repeated."""
        service, file = Service(tmp_path / "data").init(), tmp_path / "new.key"
        arguments = [service.python, "-m", "tumbler_server", "operator-key", *service.where, "--output", str(file)]
        arguments += ["--bcrypt-cost", "16"]  # seconds in which the file is there, and the key is not
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=plain_environment()) as waiting:
            eventually(file.exists)
            waiting.terminate()
            told = waiting.communicate(timeout=PATIENCE)[1]
        assert waiting.returncode == 128 + signal.SIGTERM, told
        assert "Traceback" not in told
        assert not file.exists()
        assert service.command("operator-key", "--output", str(file)).returncode == 0

    @pytest.mark.parametrize("command", ["init", "operator-key"])
    def test_a_closed_stdout_is_found_out_before(self, embedded: Service, tmp_path: Path, command: str) -> None:
        """If stdout is closed, the command fails before it makes a key that would be lost."""
        service = embedded if command == "operator-key" else Service(tmp_path / "new data")
        refused = shell(service, command, redirect=">&-")
        assert refused.returncode == 1
        assert "stdout is closed" in refused.stderr
        assert "--output FILE" in refused.stderr
        assert not (tmp_path / "new data").exists()
        assert embedded.read("SELECT COUNT(*) FROM event") == [(1,)]
        assert shell(embedded, "operator-key", "--output", str(tmp_path / "key"), redirect=">&-").returncode == 0

    def test_a_closed_stderr_leaves_the_key_alone(self, tmp_path: Path) -> None:
        """If stderr is closed, stdout still holds only the key."""
        made = shell(Service(tmp_path / "data"), "init", redirect="2>&-")
        assert made.returncode == 0
        assert keyformat.is_well_formed(made.stdout.removesuffix("\n"))


def piped(service: Service) -> subprocess.CompletedProcess[str]:
    """Run init with stdout as a pipe whose reader has closed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [service.python, "-m", "tumbler_server", "init", *service.where],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=plain_environment(),
        )
    finally:
        os.close(writer)


class TestFoundingTogether:
    """Several inits at the same time."""

    @pytest.mark.parametrize("shared", [False, True])
    def test_one_makes_all(self, database_url: str, tmp_path: Path, shared: bool) -> None:
        """Of several inits on one database, one gets a key and a matching pepper file; the others leave no file.

        This holds whether they share a data folder or not.
        """
        crowd = [Service(tmp_path / ("data" if shared else f"data-{number}"), database_url) for number in range(4)]
        with ThreadPoolExecutor(len(crowd)) as pool:
            founded = list(
                pool.map(lambda n: crowd[n].command("init", "--output", str(tmp_path / f"key-{n}")), range(len(crowd)))
            )
        winners = [number for number, made in enumerate(founded) if made.returncode == 0]
        assert len(winners) == 1, [made.stderr for made in founded]
        (winner,) = winners
        assert all("Traceback" not in made.stderr for made in founded)
        assert sorted(tmp_path.glob("key-*")) == [tmp_path / f"key-{winner}"]
        assert sorted(tmp_path.glob("data*/pepper")) == [crowd[winner].pepper_file]
        ((signed_by,),) = crowd[winner].read("SELECT pepper_id FROM api_key")
        assert [each.id for each in pepper.load(crowd[winner].pepper_file)] == [signed_by]
        crowd[winner].key = (tmp_path / f"key-{winner}").read_text().strip()
        assert works(crowd[winner].start(), crowd[winner].key)
        crowd[winner].close()
