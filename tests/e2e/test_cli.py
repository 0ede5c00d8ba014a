"""The `tumbler` command against a real server."""

import json
import os
import pty
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.service import PATIENCE, Service, eventually, plain_environment
from tumbler import keyformat


def run(server: Service, *arguments: str, code: int = 0, **how: str) -> dict[str, Any]:
    """Run ``tumbler … --json``, check its exit code, and return its parsed output."""
    done = server.cli(*arguments, "--json", **how)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_keys_life_from_the_command_line(sqlite_server: Service, project: str) -> None:
    """The command line creates, reads, updates, deactivates, activates, rotates and revokes a key."""
    server = sqlite_server
    made = run(
        server, "keys", "create", "--project", project, "--name", "deploy", "--scope", "orders:read", "--ttl", "90d"
    )
    assert made["key"].startswith(made["api_key"]["key_prefix"])
    key_id = made["api_key"]["id"]

    assert run(server, "keys", "get", key_id)["api_key"] == made["api_key"]
    listed = run(server, "keys", "list", "--project", project, "--total")
    assert ([key["id"] for key in listed["api_keys"]], listed["total_size"]) == ([key_id], 1)

    updated = run(server, "keys", "update", key_id, "--owner", "team-deploy", "--scope", "orders:*")
    assert (updated["api_key"]["owner_id"], updated["api_key"]["scopes"]) == ("team-deploy", ["orders:*"])
    assert run(server, "keys", "verify", "--scope", "orders:write", stdin=made["key"])["valid"] is True

    run(server, "keys", "deactivate", "--name", "deploy", "--project", project)
    denied = run(server, "keys", "verify", stdin=made["key"], code=1)
    assert (denied["valid"], denied["code"]) == (False, "VERIFY_CODE_INACTIVE")
    run(server, "keys", "activate", "--name", "deploy", "--project", project)

    rotated = run(server, "keys", "rotate", key_id, "--grace", "1h")
    assert rotated["api_key"]["scopes"] == ["orders:*"]
    assert rotated["old_api_key"]["replaced_by_key_id"] == rotated["api_key"]["id"]
    for key in (made["key"], rotated["key"]):
        assert run(server, "keys", "verify", stdin=key)["code"] == "VERIFY_CODE_VALID"

    again = run(server, "keys", "rotate", rotated["api_key"]["id"])
    assert again["old_api_key"]["grace_ends_on_first_use"] is True
    for key in (rotated["key"], again["key"]):
        assert run(server, "keys", "verify", stdin=key)["code"] == "VERIFY_CODE_VALID"
    eventually(lambda: server.verdict(rotated["key"]) == "SUPERSEDED")

    rotated = again
    revoked = run(server, "keys", "revoke", rotated["api_key"]["id"], "--reason", "compromised", "--yes")
    assert revoked["api_key"]["revoke_reason"] == "REVOKE_REASON_COMPROMISED"
    assert run(server, "keys", "verify", stdin=rotated["key"], code=1)["code"] == "VERIFY_CODE_REVOKED"


def test_a_new_key_as_json_is_the_record_and_the_key(sqlite_server: Service, project: str) -> None:
    """With --json, a new key's text is in `.key` and its record in `.api_key`."""
    made = run(sqlite_server, "keys", "create", "--project", project, "--metadata", "tier=gold")
    assert {"api_key", "key"} <= made.keys()
    record = made["api_key"]
    assert (record["project_id"], record["state"], record["metadata"]) == (project, "STATE_ACTIVE", {"tier": "gold"})
    created = datetime.fromisoformat(record["create_time"].replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - created).total_seconds()) < 60


def test_a_new_key_is_alone_on_stdout(sqlite_server: Service, project: str) -> None:
    """Without --json, a new key is the only line on stdout, so that it can be piped to a secret store."""
    made = sqlite_server.cli("keys", "create", "--project", project, "--name", "piped")
    assert made.returncode == 0
    assert sqlite_server.verdict(made.stdout.removesuffix("\n")) == "VALID"
    assert made.stdout.strip() not in made.stderr


def test_a_new_key_goes_into_a_file(sqlite_server: Service, project: str, tmp_path: Path) -> None:
    """With --output, each command that makes a secret writes it to a new file of mode 0600 and prints it nowhere."""
    server = sqlite_server

    def made(name: str, *arguments: str) -> str:
        done = server.cli(*arguments, "--output", str(tmp_path / name))
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        secret = (tmp_path / name).read_text().removesuffix("\n")
        assert secret not in done.stderr
        again = server.cli(*arguments, "--output", str(tmp_path / name))
        assert (again.returncode, (tmp_path / name).read_text()) == (2, f"{secret}\n")
        return secret

    first = made("first", "keys", "create", "--project", project, "--name", "in a file")
    second = made("second", "keys", "rotate", keyformat.parse(first).id)
    assert server.verdict(first) == server.verdict(second) == "VALID"
    assert len(run(server, "keys", "list", "--project", project)["api_keys"]) == 2


def test_the_last_operators_key(embedded: Service, tmp_path: Path) -> None:
    """The last operator's key can be ended only with --yes; as soon as there is another, the first can be revoked."""
    server = embedded.start()
    first = keyformat.parse(server.key).id
    for arguments in (
        ("revoke", first),
        ("deactivate", first),
        ("deactivate", "--name", "first operator"),
        ("update", first, "--scope", "tumbler:keys:read"),
    ):
        refused = server.cli("keys", *arguments)
        assert refused.returncode == 1
        assert "tumbler-server operator-key --output FILE" in refused.stderr
    assert server.state(first) == "ACTIVE"
    assert server.command("operator-key", "--output", str(tmp_path / "second")).returncode == 0
    second = (tmp_path / "second").read_text().strip()
    assert server.cli("keys", "revoke", first, key=second).returncode == 0
    assert server.cli("keys", "revoke", keyformat.parse(second).id, key=second).returncode == 1
    assert server.cli("keys", "revoke", keyformat.parse(second).id, "--yes", key=second).returncode == 0
    found = {each["subject"]: each for each in json.loads(server.command("doctor", "--json").stdout)}
    assert found["operator's key"]["severity"] == "wrong"


def test_people_get_tables(sqlite_server: Service, project: str) -> None:
    """Without --json, the output is a table without any secret."""
    made = sqlite_server.create(project_id=project, name="seen by people")
    listed = sqlite_server.cli("keys", "list", "--project", project)
    assert "seen by people" in listed.stdout
    assert made.key.rpartition("_")[2] not in listed.stdout
    verdict = sqlite_server.cli("keys", "verify", stdin=made.key)
    assert (verdict.returncode, verdict.stdout.split()[0]) == (0, "VALID")


def test_what_is_refused_is_explained(sqlite_server: Service, project: str) -> None:
    """A refused call prints the field and the rule, and exits with 1."""
    refused = sqlite_server.cli("keys", "create", "--project", project, "--name", "ab")
    assert refused.returncode == 1
    assert "name" in refused.stderr
    assert "3-255 characters" in refused.stderr
    error = sqlite_server.cli("keys", "create", "--project", project, "--name", "ab", "--json")
    assert error.returncode == 1
    assert '"INVALID_FIELD"' in error.stdout + error.stderr


def test_a_key_that_may_not_is_told_the_scope_it_lacks(sqlite_server: Service, project: str) -> None:
    """If the key lacks a scope, the error names it, and the exit code is 1."""
    reader = sqlite_server.caller("tumbler:keys:read", project_id=project)
    refused = sqlite_server.cli("keys", "create", "--project", project, key=reader.key)
    assert refused.returncode == 1
    assert "tumbler:keys:create" in refused.stderr
    assert sqlite_server.cli("keys", "list", key=reader.key).returncode == 0


def test_a_misuse_ends_with_two(sqlite_server: Service) -> None:
    """A usage error exits with 2, without a call."""
    assert sqlite_server.cli("keys", "create").returncode == 2
    assert sqlite_server.cli("keys", "lsit").returncode == 2


def test_a_server_that_is_not_there_ends_with_three(embedded: Service) -> None:
    """If no server answers, the exit code is 3, and the error names the address."""
    embedded.start()
    embedded.stop()
    unreachable = embedded.cli("keys", "list", "--timeout", "5s")
    assert unreachable.returncode == 3
    assert embedded.target in unreachable.stderr


def test_who_did_what(sqlite_server: Service, project: str) -> None:
    """`events list` shows a key's events with actors and details; scripts follow the pages as JSON."""
    server = sqlite_server
    caller = server.caller("tumbler:keys:*", project_id=project)
    key_id = caller.create(project_id=project).api_key.id
    caller.revoke(key_id, comment="seen in a log")

    table = server.cli("events", "list", "--project", project, "--key", key_id).stdout.splitlines()
    assert ("created" in table[1], "revoked" in table[2], len(table)) == (True, True, 3)
    assert "caller" in table[2]
    assert "comment=seen in a log" in table[2]

    (revoked,) = run(server, "events", "list", "--project", project, "--type", "revoked", "--since", "1h")["events"]
    assert (revoked["key_id"], revoked["actor"]["name"]) == (key_id, "caller")
    first = run(server, "events", "list", "--project", project, "--limit", "1")
    rest = run(server, "events", "list", "--project", project, "--all", "--page-token", first["next_page_token"])
    assert [event["type"] for event in first["events"] + rest["events"]] == [
        "KEY_EVENT_TYPE_CREATED",
        "KEY_EVENT_TYPE_CREATED",
        "KEY_EVENT_TYPE_REVOKED",
    ]


@contextmanager
def watching(server: Service, *arguments: str, stderr: Path, **how: Any) -> Iterator[subprocess.Popen[str]]:
    """Run ``tumbler keys watch`` until it reports that it is watching, and stop it afterwards."""
    program = [str(Path(sys.executable).with_name("tumbler")), "keys", "watch", *arguments]
    environment = plain_environment(TUMBLER_ENDPOINT=server.target, TUMBLER_API_KEY=server.key, TERM="xterm")
    with stderr.open("wb") as errors:
        child = subprocess.Popen(
            program, **{"stdout": subprocess.PIPE, "stderr": errors, "env": environment, "text": True, **how}
        )
    try:
        eventually(lambda: "Watching" in stderr.read_text())
        yield child
    finally:
        child.kill()
        child.communicate()


def test_changes_are_told_as_they_are_made(sqlite_server: Service, project: str, tmp_path: Path) -> None:
    """`keys watch --json` prints each change of its project as one line of JSON until it is interrupted."""
    server = sqlite_server
    with watching(server, "--project", project, "--json", stderr=tmp_path / "stderr") as child:
        server.create(project_id="another")
        key_id = server.create(project_id=project).api_key.id
        server.revoke(key_id)
        assert child.stdout is not None
        told = [json.loads(child.stdout.readline()) for _ in range(2)]
        assert [(event["type"], event["key_id"]) for event in told] == [
            ("KEY_EVENT_TYPE_CREATED", key_id),
            ("KEY_EVENT_TYPE_REVOKED", key_id),
        ]
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130


def test_a_watch_outlives_the_server(embedded: Service, tmp_path: Path) -> None:
    """`keys watch` survives a restart of the server, and reports the broken and the resumed stream."""
    embedded.start()
    stderr = tmp_path / "stderr"
    with watching(embedded, stderr=stderr) as child:
        assert embedded.stop() == 0
        eventually(lambda: "The stream broke" in stderr.read_text())
        embedded.start(listen=embedded.target)
        key_id = embedded.create().api_key.id
        assert child.stdout is not None
        line = child.stdout.readline()
        assert (key_id in line, "created" in line) == (True, True)
        assert "The stream resumed" in stderr.read_text()


def test_a_watch_ends_with_its_key(sqlite_server: Service, project: str, tmp_path: Path) -> None:
    """If the key of a `keys watch` is revoked, the command reports UNAUTHENTICATED and exits with 1."""
    caller = sqlite_server.caller("tumbler:keys:verify", project_id=project)
    environment = plain_environment(TUMBLER_ENDPOINT=sqlite_server.target, TUMBLER_API_KEY=caller.key)
    with watching(sqlite_server, stderr=tmp_path / "stderr", env=environment) as child:
        sqlite_server.revoke(caller.key.split("_")[1])
        assert child.wait(PATIENCE) == 1
    assert "UNAUTHENTICATED" in (tmp_path / "stderr").read_text()


def test_a_watch_on_a_terminal(sqlite_server: Service, project: str, tmp_path: Path) -> None:
    """On a terminal, `keys watch` scrolls the changes and shows the changed keys below, by name and state."""
    ours, its = pty.openpty()
    shown = ""
    with watching(sqlite_server, "--project", project, stderr=tmp_path / "stderr", stdout=its, stdin=its) as child:
        os.close(its)
        made = sqlite_server.create(project_id=project, name="on the board")
        sqlite_server.set_active(made.api_key.id, False)
        while "inactive" not in shown:
            shown += os.read(ours, 10_000).decode()
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE) == 130
    while "\x1b[?25h" not in shown:  # the cursor is visible again
        shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "on the board" in shown
    assert made.api_key.key_prefix in shown
    assert made.key.rpartition("_")[2] not in shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="it is about bash")
def test_my_shell_completes(tmp_path: Path) -> None:
    """After ``tumbler --install-completion``, a new shell completes commands and values without a server."""
    bin_ = Path(sys.executable).parent
    environment = {"HOME": str(tmp_path), "PATH": f"{bin_}:/usr/bin:/bin", "TERM": "xterm"}

    def shell(script: str) -> str:
        done = subprocess.run(
            ["bash", "--norc", "-c", script],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell("tumbler --install-completion; exit $?")  # with a second command, bash stays as the parent process
    offered = shell(
        "source ~/.bashrc && complete -p tumbler >/dev/null || exit 1\n"
        "COMP_WORDS=(tumbler keys list --state in) COMP_CWORD=4\n"
        '_tumbler_completion tumbler; echo "${COMPREPLY[@]}"\n'
        "COMP_WORDS=(tumbler events list --type rot) COMP_CWORD=4\n"
        '_tumbler_completion tumbler; echo "${COMPREPLY[@]}"\n'
    )
    assert offered.splitlines() == ["inactive", "rotated rotation-due rotation-claimed rotation-overdue"]
    assert "_TUMBLER_COMPLETE=complete_bash" in shell("tumbler --show-completion; exit $?")
