"""The `tumbler` command against a real server."""

import json
from datetime import datetime, timezone
from typing import Any

from tests.e2e.service import Service


def run(server: Service, *arguments: str, code: int = 0, **how: str) -> dict[str, Any]:
    """Run ``tumbler … --json``, check its exit code, and return what it printed."""
    done = server.cli(*arguments, "--json", **how)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_keys_life_from_the_command_line(sqlite_server: Service, project: str) -> None:
    """From a terminal I create a key, look at it, change it, switch it off and on, rotate it and revoke it."""
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

    revoked = run(server, "keys", "revoke", rotated["api_key"]["id"], "--reason", "compromised", "--yes")
    assert revoked["api_key"]["revoke_reason"] == "REVOKE_REASON_COMPROMISED"
    assert run(server, "keys", "verify", stdin=rotated["key"], code=1)["code"] == "VERIFY_CODE_REVOKED"


def test_a_new_key_as_json_is_the_record_and_the_key(sqlite_server: Service, project: str) -> None:
    """My scripts read a new key from `.key` and what is known of it from `.api_key`."""
    made = run(sqlite_server, "keys", "create", "--project", project, "--metadata", "tier=gold")
    assert {"api_key", "key"} <= made.keys()
    record = made["api_key"]
    assert (record["project_id"], record["state"], record["metadata"]) == (project, "STATE_ACTIVE", {"tier": "gold"})
    created = datetime.fromisoformat(record["create_time"].replace("Z", "+00:00"))
    assert abs((datetime.now(timezone.utc) - created).total_seconds()) < 60


def test_a_new_key_is_alone_on_stdout(sqlite_server: Service, project: str) -> None:
    """Without --json, the key is the one line on stdout: I can pipe it to where secrets are kept."""
    made = sqlite_server.cli("keys", "create", "--project", project, "--name", "piped")
    assert made.returncode == 0
    assert sqlite_server.verdict(made.stdout.removesuffix("\n")) == "VALID"
    assert made.stdout.strip() not in made.stderr


def test_people_get_tables(sqlite_server: Service, project: str) -> None:
    """Without --json, I read a table of my keys, and no secret in it."""
    made = sqlite_server.create(project_id=project, name="seen by people")
    listed = sqlite_server.cli("keys", "list", "--project", project)
    assert "seen by people" in listed.stdout
    assert made.key.rpartition("_")[2] not in listed.stdout
    verdict = sqlite_server.cli("keys", "verify", stdin=made.key)
    assert (verdict.returncode, verdict.stdout.split()[0]) == (0, "VALID")


def test_what_is_refused_is_explained(sqlite_server: Service, project: str) -> None:
    """If the server refuses, I read the field that is wrong and the rule; the exit code is 1."""
    refused = sqlite_server.cli("keys", "create", "--project", project, "--name", "ab")
    assert refused.returncode == 1
    assert "name" in refused.stderr
    assert "3–255 characters" in refused.stderr
    error = sqlite_server.cli("keys", "create", "--project", project, "--name", "ab", "--json")
    assert error.returncode == 1
    assert '"INVALID_FIELD"' in error.stdout + error.stderr


def test_a_key_that_may_not_is_told_the_scope_it_lacks(sqlite_server: Service, project: str) -> None:
    """If my key lacks a permission, I am told its name; the exit code is 1."""
    reader = sqlite_server.caller("tumbler:keys:read", project_id=project)
    refused = sqlite_server.cli("keys", "create", "--project", project, key=reader.key)
    assert refused.returncode == 1
    assert "tumbler:keys:create" in refused.stderr
    assert sqlite_server.cli("keys", "list", key=reader.key).returncode == 0


def test_a_misuse_ends_with_two(sqlite_server: Service) -> None:
    """If I mistype a command, the exit code is 2, and no call is made."""
    assert sqlite_server.cli("keys", "create").returncode == 2
    assert sqlite_server.cli("keys", "lsit").returncode == 2


def test_a_server_that_is_not_there_ends_with_three(embedded: Service) -> None:
    """If no server answers, the exit code is 3, and I am told where it was looked for."""
    embedded.start()
    embedded.stop()
    unreachable = embedded.cli("keys", "list", "--timeout", "5s")
    assert unreachable.returncode == 3
    assert embedded.target in unreachable.stderr
