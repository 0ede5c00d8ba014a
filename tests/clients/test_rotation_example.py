"""The example receiver replaces a key on schedule, from the webhook to the file with the new key."""

import contextlib
import json
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.clients.conformance.programs import ROOT
from tests.e2e.service import PATIENCE, Service, eventually, plain_environment
from tests.webhooks.receiver import OPTIONS, Receiver, Sent
from tumbler import keyformat


@pytest.fixture
def service(installation: Service, tmp_path: Path) -> Iterator[Service]:
    """Yield a running server that sends webhooks to this machine."""
    service = Service(shutil.copytree(installation.data_dir, tmp_path / "data"), "", OPTIONS, installation.key)
    try:
        yield service.start()
    finally:
        service.close()


class Example:
    """The example, with a folder for its key file and a file for its output."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self.key_file = folder / "keys" / "orders.key"
        self.key_file.parent.mkdir(exist_ok=True)
        self.output = folder / "output"

    @contextlib.contextmanager
    def running(self, endpoint: str, secret: str) -> Iterator["Example"]:
        """Run it as its README says."""
        environment = plain_environment(
            TUMBLER_ENDPOINT=endpoint,
            WEBHOOK_SECRET=secret,
            KEY_FILE=str(self.key_file),
            PORT=self.url.rpartition(":")[2].strip("/"),
        )
        with self.output.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "examples/rotation/receiver.py"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            eventually(lambda: "listening on" in self.output.read_text() or process.poll() is not None)
            assert process.poll() is None, self.output.read_text()
            yield self
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        assert not [text for text in (secret, self.key) if text and text in self.output.read_text()]

    @property
    def key(self) -> str:
        """Return the key in the file, or "" while there is none."""
        return self.key_file.read_text().strip() if self.key_file.exists() else ""

    @property
    def files(self) -> list[tuple[str, int]]:
        """Return the files in the key file's folder, with their modes."""
        return [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in self.key_file.parent.iterdir()]

    def post(self, sent: Sent, **changed: str) -> int:
        """Post a webhook, with a changed header or body if given, and return the status of the answer."""
        body = changed.pop("body", sent.body).encode()
        headers = {**sent.headers, "content-length": str(len(body)), **changed}
        request = urllib.request.Request(self.url, body, headers)  # noqa: S310 - http, to this machine
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as refused:
            with refused:
                return int(refused.status)


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """Return the example, not running, with a free port: a key needs the URL before the secret is known."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return Example(tmp_path, free.getsockname()[1])


def scheduled(service: Service, url: str) -> dict[str, Any]:
    """Create a key with the command, due in a second, with webhooks to this URL. Return the command's output."""
    made = service.cli(
        *("keys", "create", "--project", "acme", "--name", "orders", "--scope", "orders:read"),
        *("--rotation-interval", "1s", "--webhook-url", url, "--json"),
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def descent(service: Service, key_id: str) -> list[str]:
    """Return the ids of a key and of all its successors, in order."""
    ids = [key_id]
    while successor := service.get(ids[-1]).replaced_by_key_id:
        ids.append(successor)
    return ids


def too_long(sent: Sent, secret: str) -> dict[str, str]:
    """Return the changes that make a webhook longer than the receiver reads, with a correct signature."""
    body = sent.body + " " * 65_536
    time = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), timezone.utc)
    return {"body": body, "webhook-signature": Webhook(secret).sign(sent.headers["webhook-id"], time, body)}


@pytest.fixture
def told(service: Service) -> tuple[dict[str, Any], Sent]:
    """Create a key that is due, and return it with its webhook, which no one has acted on."""
    with Receiver() as receiver:
        made = scheduled(service, receiver.url)
        return made, receiver.next("key.rotation_due")


def test_the_whole_loop(service: Service, example: Example) -> None:
    """A key that is due is replaced without human help: the new key is in the file, and its use ends the old one."""
    made = scheduled(service, example.url)
    with example.running(service.target, made["webhook_secret"]):
        new = eventually(lambda: example.key)
        # A second later the new key is due too.
        line = descent(service, made["api_key"]["id"])
        assert keyformat.parse(new).id in line[1:]
        assert service.get(line[1]).replaces_key_id == line[0]
        assert [service.verdict(key, required_scopes=["orders:read"]) for key in (made["key"], new)] == ["VALID"] * 2
        eventually(lambda: service.verdict(made["key"]) == "SUPERSEDED")
        assert service.state(line[0]) == "SUPERSEDED"
        assert stat.S_IMODE(example.key_file.stat().st_mode) == 0o600
        delivered = ("events", "deliveries", "--project", "acme", "--state", "delivered")
        eventually(lambda: "key.rotation_due" in service.cli(*delivered).stdout)


def test_what_it_answers(service: Service, example: Example, told: tuple[dict[str, Any], Sent]) -> None:
    """A forged webhook gets 400 and changes nothing. A true one gets 204, as does a replay, which changes nothing."""
    made, due = told
    key_id, signature = made["api_key"]["id"], due.headers["webhook-signature"]
    forged = {"webhook-signature": "v1," + "A" * 43 + "="}
    with example.running(service.target, made["webhook_secret"]):
        assert example.post(due, **forged) == 400
        assert example.post(due, **{"webhook-signature": "nonsense"}) == 400
        assert example.post(due, **{"webhook-timestamp": "1600000000"}) == 400
        assert example.post(due, **{"webhook-id": "msg_other"}) == 400
        assert example.post(due, body=due.body.replace("acme", "emca")) == 400
        assert example.post(due, **too_long(due, made["webhook_secret"])) == 400
        assert (example.files, descent(service, key_id)) == ([], [key_id])

        assert example.post(due) == 204
        first = example.key
        assert example.files == [("orders.key", 0o600)]
        assert descent(service, key_id) == [key_id, keyformat.parse(first).id]
        assert example.post(due) == 204
        assert (example.files, example.key) == ([("orders.key", 0o600)], first)
        assert descent(service, key_id) == [key_id, keyformat.parse(first).id]
    log = example.output.read_text()
    assert not [text for text in (due.data["claim_token"], signature) if text in log]


def test_a_type_that_it_does_not_know(service: Service, example: Example) -> None:
    """A webhook of an unknown type is accepted, and nothing is claimed."""
    with Receiver() as receiver:
        made = scheduled(service, receiver.url)
        service.set_active(made["api_key"]["id"], active=False)
        sent = receiver.next("key.deactivated")
    with example.running(service.target, made["webhook_secret"]):
        assert example.post(sent) == 204
        assert example.files == []


def test_a_server_that_is_away(service: Service, example: Example, told: tuple[dict[str, Any], Sent]) -> None:
    """A claim that fails for a transient reason gets 500, so that the webhook is retried. Nothing is left behind."""
    made, due = told
    with example.running("127.0.0.1:1", made["webhook_secret"]):
        assert example.post(due) == 500
        assert example.files == []
    with example.running(service.target, made["webhook_secret"]):
        assert example.post(due) == 204
        assert service.verdict(example.key) == "VALID"


def test_a_file_that_cannot_be_written(service: Service, example: Example, told: tuple[dict[str, Any], Sent]) -> None:
    """If the file cannot be written, nothing is claimed, and the webhook counts as not delivered."""
    made, due = told
    example.key_file.parent.rmdir()
    with example.running(service.target, made["webhook_secret"]):
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            example.post(due)
        assert descent(service, made["api_key"]["id"]) == [made["api_key"]["id"]]
        example.key_file.parent.mkdir()
        assert example.post(due) == 204


def test_a_claim_by_the_command_line(service: Service, told: tuple[dict[str, Any], Sent], tmp_path: Path) -> None:
    """`tumbler keys claim -` exchanges a webhook's token for the new key, once, without a key. Its use ends the old."""
    made, due = told
    token, path = due.data["claim_token"], tmp_path / "new-key"
    claimed = service.cli("keys", "claim", "-", "--output", str(path), "--json", stdin=f"{token}\n", key="")
    assert claimed.returncode == 0, claimed.stderr
    answer = json.loads(claimed.stdout)
    assert (answer["key"], answer["api_key"]["replaces_key_id"]) == ("", made["api_key"]["id"])
    assert [service.verdict(key) for key in (made["key"], path.read_text().strip())] == ["VALID", "VALID"]
    eventually(lambda: service.verdict(made["key"]) == "SUPERSEDED")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    again = service.cli("keys", "claim", "-", stdin=token, key="")
    assert (again.returncode, again.stdout) == (1, "")
    assert "KEY_SUPERSEDED" in again.stderr
    foreign = service.cli("keys", "claim", "-", stdin=token[:-4] + "AAAA", key="")
    assert (foreign.returncode, foreign.stdout) == (1, "")
    assert "CLAIM_TOKEN_INVALID" in foreign.stderr
