"""Where each command writes a secret that is shown only once: a file, stdout, or nowhere."""

import json
import os
import stat
import subprocess

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.unit.cli.conftest import KEY, KEY_ID
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

URL = "https://hooks.example/tumbler"
SECRET = "whsec_" + "QUJD" * 10
NEW = api_key_pb2.ApiKey(id=KEY_ID, name="ci", project_id="acme")
OLD = api_key_pb2.ApiKey(key_prefix="old_", grace_expire_time=Timestamp(seconds=1_798_761_600))

ANSWERS = {
    "Create": pb.CreateResponse(api_key=NEW, key=KEY),
    "Rotate": pb.RotateResponse(api_key=NEW, old_api_key=OLD, key=KEY),
    "ClaimRotation": pb.ClaimRotationResponse(api_key=NEW, old_api_key=OLD, key=KEY),
    "RotateWebhookSecret": pb.RotateWebhookSecretResponse(webhook_secret=SECRET),
    "Update": pb.UpdateResponse(api_key=NEW, webhook_secret=SECRET),
}
ROTATE_KEY = f"tumbler keys rotate {KEY_ID} --output FILE"
ROTATE_SECRET = f"tumbler events rotate-secret {URL} --project acme --output FILE"

COMMANDS = {
    "create": ("keys create --project acme", "Create", KEY, ROTATE_KEY),
    "rotate": (f"keys rotate {KEY_ID}", "Rotate", KEY, ROTATE_KEY),
    "claim": ("keys claim claim_token", "ClaimRotation", KEY, ROTATE_KEY),
    "rotate-secret": (f"events rotate-secret {URL} --project acme", "RotateWebhookSecret", SECRET, ROTATE_SECRET),
    "update": (f"keys update {KEY_ID} --rotation-interval 7d --webhook-url {URL}", "Update", SECRET, ROTATE_SECRET),
}


@pytest.fixture(autouse=True)
def answered(recorder):
    """Have the server answer every call."""
    recorder.answers.update({rpc: [answer] for rpc, answer in ANSWERS.items()})


@pytest.fixture(params=COMMANDS)
def shows(request):
    """Return each command that shows a secret: its arguments, RPC, secret, and the remedy for its loss."""
    line, *rest = COMMANDS[request.param]
    return line.split(), *rest


@pytest.mark.parametrize("as_json", [False, True])
def test_into_a_file(run, tmp_path, shows, as_json):
    """With --output the secret and a newline are in a new file of mode 0600, and are not shown, nor in JSON."""
    arguments, _, secret, _ = shows
    path = tmp_path / "secret"
    code, out, err = run(*arguments, "--output", str(path), *(["--json"] if as_json else []))
    assert code == 0, err
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (f"{secret}\n", 0o600)
    assert secret not in out + err
    if as_json:
        answer = json.loads(out)
        assert {answer.get("key", ""), answer.get("webhook_secret", "")} == {""}
        assert err == ""
    else:
        assert f"is in {path}." in err


def test_what_is_there_stays(run, recorder, tmp_path, shows):
    """An existing file is refused before any call, and is kept."""
    path = tmp_path / "secret"
    path.write_text("in use")
    code, out, err = run(*shows[0], "--output", str(path))
    assert (code, out, recorder.requests) == (2, "", [])
    assert f"{path} already exists and is not overwritten: name a new file." in err
    assert path.read_text() == "in use"


@pytest.mark.parametrize("name", ["-", ""])
def test_stdout_is_no_file(run, recorder, tmp_path, monkeypatch, shows, name):
    """An --output of - or the empty string is refused: a secret goes into a file, or is shown."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*shows[0], f"--output={name}")
    assert (code, out, recorder.requests, list(tmp_path.iterdir())) == (2, "", [], [])
    assert "name a file" in err


@pytest.mark.parametrize("status", ["PERMISSION_DENIED", "UNAVAILABLE"])
def test_without_an_answer_there_is_no_file(run, recorder, tmp_path, shows, status):
    """If no secret is returned, no empty file remains that could be mistaken for one."""
    recorder.error = (grpc.StatusCode[status], "no")
    code, _, _ = run(*shows[0], "--output", str(tmp_path / "secret"))
    assert (code > 0, os.listdir(tmp_path)) == (True, [])


@pytest.mark.parametrize("as_json", [False, True])
def test_a_stdout_that_takes_nothing(process, shows, as_json):
    """If stdout cannot be written, the command fails, and the message says how to replace the lost secret."""
    arguments, rpc, secret, mend = shows
    as_json = as_json or rpc == "Update"  # without --json, Update shows its secret on stderr
    with open("/dev/full", "wb") as full:
        child = process(*arguments, *(["--json"] if as_json else []), stdout=full)
        code, err = child.wait(30), child.stderr.read().decode()
    assert code == 1
    said = json.loads(err)["error"]["hint"] if as_json else err
    assert mend in said
    assert "NOT_WRITTEN" in err
    assert "No space left on device" in err
    assert secret not in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def test_a_pipe_whose_reader_has_gone(process, shows):
    """A secret written to a pipe without a reader counts as lost."""
    arguments, _, _, mend = shows
    reader, writer = os.pipe()
    os.close(reader)
    child = process(*arguments, "--json", stdout=writer)
    os.close(writer)
    assert child.wait(30) == 1
    assert mend in json.loads(child.stderr.read())["error"]["hint"]


def test_a_closed_stdout(process, recorder, shows):
    """If stdout is closed, no call is made, because the secret would be lost."""
    child = process(*shows[0], closed=1)
    assert (child.wait(30), recorder.requests) == (2, [])
    assert b"stdout is closed" in child.stderr.read()


def test_a_closed_stdout_and_a_file(process, tmp_path, shows):
    """With --output, stdout may be closed."""
    arguments, _, secret, _ = shows
    child = process(*arguments, "--output", str(tmp_path / "secret"), closed=1)
    assert child.wait(30) == 0, child.stderr.read()
    assert (tmp_path / "secret").read_text() == f"{secret}\n"


def test_a_closed_stderr(process, shows):
    """If stderr is closed, its text does not go to stdout."""
    arguments, rpc, secret, _ = shows
    child = process(*arguments, stdout=subprocess.PIPE, stderr=None, closed=2)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 0
    assert (out.decode() == f"{secret}\n") is (rpc != "Update")
    assert b"not shown again" not in out


@pytest.mark.parametrize("line", ["keys list", f"keys get {KEY_ID}", f"keys revoke {KEY_ID} --yes", "events list"])
def test_other_answers_that_cannot_be_written(process, line):
    """A command without a secret also fails in one line if stdout cannot be written, and runs without a stdout."""
    with open("/dev/full", "wb") as full:
        child = process(*line.split(), stdout=full)
        assert child.wait(30) == 1
    assert child.stderr.read() == (
        b"NOT_WRITTEN: the call succeeded, but its answer could not be written: No space left on device\n"
    )
    assert process(*line.split(), closed=1).wait(30) == 0


class TestTwoSecrets:
    """A key and its webhook's secret in one answer."""

    LINE = ("keys", "create", "--project", "acme", "--rotation-interval", "7d", "--webhook-url", URL)

    @pytest.fixture(autouse=True)
    def both(self, recorder):
        """Have Create answer with both secrets."""
        recorder.answers["Create"] = [pb.CreateResponse(api_key=NEW, key=KEY, webhook_secret=SECRET)]

    @pytest.mark.parametrize("as_json", [False, True])
    def test_a_file_for_each(self, run, tmp_path, as_json):
        """Each secret goes into its own file, and neither is shown."""
        files = ("--output", str(tmp_path / "key"), "--webhook-secret-output", str(tmp_path / "secret"))
        code, out, err = run(*self.LINE, *files, *(["--json"] if as_json else []))
        assert code == 0
        assert ((tmp_path / "key").read_text(), (tmp_path / "secret").read_text()) == (f"{KEY}\n", f"{SECRET}\n")
        assert SECRET not in out + err
        assert KEY not in out + err

    def test_a_url_that_had_a_secret(self, run, recorder, tmp_path):
        """If the URL already had a secret, no file for it remains."""
        recorder.answers["Create"] = [ANSWERS["Create"]]
        files = ("--output", str(tmp_path / "key"), "--webhook-secret-output", str(tmp_path / "secret"))
        assert run(*self.LINE, *files)[0] == 0
        assert os.listdir(tmp_path) == ["key"]

    def test_a_file_for_one_alone(self, run, recorder, tmp_path):
        """A file for the key alone is refused, because the other secret would be shown."""
        code, _, err = run(*self.LINE, "--output", str(tmp_path / "key"))
        assert (code, recorder.requests, os.listdir(tmp_path)) == (2, [], [])
        assert "--webhook-secret-output" in err

    def test_a_file_for_no_secret(self, run, recorder, tmp_path):
        """A file for a webhook secret is refused without a webhook."""
        path = str(tmp_path / "secret")
        assert run("keys", "create", "--project", "acme", "--webhook-secret-output", path)[0] == 2
        assert run("keys", "update", KEY_ID, "--name", "new", "--webhook-secret-output", path)[0] == 2
        assert recorder.requests == []

    def test_both_are_lost(self, process):
        """If stdout cannot be written, the message names the remedies for both secrets."""
        with open("/dev/full", "wb") as full:
            child = process(*self.LINE, "--json", stdout=full)
            assert child.wait(30) == 1
        hint = json.loads(child.stderr.read())["error"]["hint"]
        assert ROTATE_KEY in hint
        assert ROTATE_SECRET in hint


def test_a_repeated_request_leaves_no_file(run, recorder, tmp_path):
    """A replayed request returns no key, and leaves no file."""
    recorder.answers["Create"] = [pb.CreateResponse(api_key=NEW, secret_omitted=True)]
    code, out, err = run("keys", "create", "--project", "acme", "--output", str(tmp_path / "key"))
    assert (code, out, os.listdir(tmp_path)) == (0, "", [])
    assert f"tumbler keys rotate {KEY_ID}" in err
