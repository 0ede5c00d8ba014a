"""The command `tumbler keys claim`."""

import errno
import json
import os
import stat
import sys

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo

from tests.unit.cli.conftest import KEY, KEY_ID, Stdin
from tumbler import secret_file
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

TOKEN = "claim_" + "t0k3n" * 6 + "." + "-".join(["t0k3n" * 2] * 4)
"""As long as a real token, and with hyphens, as one may have."""

ANSWER = pb.ClaimRotationResponse(
    api_key=api_key_pb2.ApiKey(id=KEY_ID, name="ci"),
    old_api_key=api_key_pb2.ApiKey(key_prefix="old_", grace_expire_time=Timestamp(seconds=1_798_761_600)),
    key=KEY,
)


@pytest.fixture(autouse=True)
def due(recorder, monkeypatch):
    """Have the server answer a claim, without any calling key set."""
    monkeypatch.delenv("TUMBLER_API_KEY")
    recorder.answers["ClaimRotation"] = [ANSWER]


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (TOKEN, {"claim_token": TOKEN, "grace_period": "604800s", "old_key_ends": "OLD_KEY_ENDS_ON_FIRST_USE"}),
        (f"{TOKEN} --grace 0s", {"claim_token": TOKEN, "grace_period": "0s"}),
        (f"{TOKEN} --old-key-ends grace-end", {"claim_token": TOKEN, "old_key_ends": "OLD_KEY_ENDS_AT_GRACE_END"}),
        ("- --grace 1d", {"claim_token": TOKEN, "grace_period": "86400s"}),
    ],
    ids=["argument", "grace", "grace end", "stdin"],
)
def test_request(run, recorder, monkeypatch, line, request_):
    """The token comes from the argument or from stdin; the old key ends as after Rotate."""
    monkeypatch.setattr(sys, "stdin", Stdin(f"{TOKEN}\n"))
    code, _, err = run("keys", "claim", *line.split())
    assert code == 0, err
    assert MessageToDict(recorder.requests[-1], preserving_proto_field_name=True) == request_


@pytest.mark.parametrize("arguments", [(), ("--api-key-file", "no-such-file")])
def test_no_calling_key(run, recorder, monkeypatch, arguments):
    """The token is the only credential: a calling key is not required, and not sent if there is one."""
    assert run("keys", "claim", TOKEN, *arguments)[0] == 0
    monkeypatch.setenv("TUMBLER_API_KEY", "of-somebody")
    assert run("keys", "claim", TOKEN, *arguments)[0] == 0
    assert len(recorder.requests) == 2
    assert not {"authorization", "x-api-key"} & set(recorder.metadata)


def test_output(run):
    """The new key is alone on stdout; stderr has its record, and until when the old one works."""
    code, out, err = run("keys", "claim", TOKEN)
    assert (code, out) == (0, f"{KEY}\n")
    assert "not shown again" in err
    assert KEY_ID in err
    assert "The old key, old_, works until 2027-01-01 00:00:00Z." in err
    assert TOKEN not in err


def test_json(run):
    """With --json a claim is one JSON object, as a rotation is."""
    code, out, err = run("keys", "claim", TOKEN, "--json")
    answer = json.loads(out)
    assert (code, err, answer["key"], answer["api_key"]["id"]) == (0, "", KEY, KEY_ID)
    assert answer["old_api_key"]["key_prefix"] == "old_"


@pytest.mark.parametrize("as_json", [False, True])
def test_into_a_file(run, tmp_path, as_json):
    """With --output the key and a newline are in a file of mode 0600, and are not shown."""
    path = tmp_path / "key"
    code, out, err = run("keys", "claim", TOKEN, "--output", str(path), *(["--json"] if as_json else []))
    assert code == 0
    assert path.read_text() == f"{KEY}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KEY not in out + err
    if as_json:
        assert (json.loads(out)["key"], json.loads(out)["api_key"]["id"], err) == ("", KEY_ID, "")
    else:
        assert out == ""
        assert "The new key is in " in err
        assert KEY_ID in err


@pytest.mark.parametrize("mask", [0o000, 0o777])
def test_the_mode_is_not_the_umasks(run, tmp_path, mask):
    """The file has mode 0600, whatever the umask."""
    before = os.umask(mask)
    try:
        assert run("keys", "claim", TOKEN, "--output", str(tmp_path / "key"))[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_the_file_is_begun_before_the_call(run, recorder, tmp_path, monkeypatch):
    """During the call the file exists with mode 0600, and has no secret yet."""
    path = tmp_path / "key"
    seen = []

    def look(rpc, request, context):
        seen.extend((each.name, stat.S_IMODE(each.stat().st_mode), each.read_text().strip()) for each in [path])
        return ANSWER

    monkeypatch.setattr(recorder, "handle", look)
    assert run("keys", "claim", TOKEN, "--output", str(path))[0] == 0
    assert seen == [("key", 0o600, "")]


def no_folder(tmp_path, monkeypatch):
    """Return a path in a folder that does not exist."""
    return tmp_path / "none" / "key"


def folder(tmp_path, monkeypatch):
    """Return the path of a folder."""
    (tmp_path / "key").mkdir()
    return tmp_path / "key"


def former_key(tmp_path, monkeypatch):
    """Return the path of a key in use."""
    (tmp_path / "key").write_text("in use")
    return tmp_path / "key"


def dangling_link(tmp_path, monkeypatch):
    """Return the path of a dangling link."""
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "key"


def full_disk(tmp_path, monkeypatch):
    """Return a path on a full disk."""
    begin = os.open

    def open_full(path, flags, *mode, **how):
        descriptor = begin(path, flags, *mode, **how)
        if str(path) == str(tmp_path / "key"):
            os.dup2(begin("/dev/full", os.O_RDWR), descriptor)
        return descriptor

    monkeypatch.setattr(secret_file.os, "fchmod", lambda *_: None)
    monkeypatch.setattr(secret_file.os.path, "samestat", lambda *_: True)
    monkeypatch.setattr(secret_file.os, "open", open_full)
    return tmp_path / "key"


@pytest.mark.parametrize("place", [no_folder, folder, former_key, dangling_link, full_disk])
def test_a_file_that_cannot_be_begun(run, recorder, tmp_path, monkeypatch, place):
    """A file that cannot be created is reported before the claim, so no secret is lost, and existing files stay."""
    path = place(tmp_path, monkeypatch)
    before = {each.name: each.is_file() and each.read_text() for each in tmp_path.iterdir()}
    code, out, err = run("keys", "claim", TOKEN, "--output", str(path))
    assert (code, out, recorder.requests) == (2, "", [])
    assert "'--output'" in err
    assert {each.name: each.is_file() and each.read_text() for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("status", ["FAILED_PRECONDITION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"])
def test_without_an_answer_there_is_no_file(run, recorder, tmp_path, status):
    """If no key is returned, for any reason, no empty file remains that could be mistaken for one."""
    recorder.error = (grpc.StatusCode[status], "no", ErrorInfo(reason="CLAIM_OUTDATED"))
    code, out, _ = run("keys", "claim", TOKEN, "--output", str(tmp_path / "key"))
    assert (code > 0, out, os.listdir(tmp_path)) == (True, "", [])


def test_a_disk_that_failed_meanwhile(run, tmp_path, monkeypatch):
    """If the key cannot be written after the claim, the message says how to replace it."""
    fsync, calls = os.fsync, []

    def fail_the_second_time(descriptor):
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(secret_file.os, "fsync", fail_the_second_time)
    code, out, err = run("keys", "claim", TOKEN, "--output", str(tmp_path / "key"), "--json")
    error = json.loads(err)["error"]
    assert (code, out, error["code"], error["hint"]) == (
        *(1, "", "NOT_WRITTEN"),
        f"The key {KEY_ID} is lost. Replace it: tumbler keys rotate {KEY_ID} --output FILE; "
        f"or revoke it: tumbler keys revoke {KEY_ID}",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "reason", "metadata", "hint"),
    [
        ("UNAUTHENTICATED", "CLAIM_TOKEN_INVALID", {}, "Pass the claim_token of this server's webhook"),
        ("FAILED_PRECONDITION", "CLAIM_OUTDATED", {"key_id": KEY_ID}, "brings a new token."),
        (
            "FAILED_PRECONDITION",
            "KEY_SUPERSEDED",
            {"replaced_by_key_id": "B" * 16},
            f"Use its successor, {'B' * 16}. If that is lost, rotate it: tumbler keys rotate {'B' * 16}",
        ),
    ],
)
def test_refusals(run, recorder, code, reason, metadata, hint):
    """A refusal names the remedy, and does not mention a calling key, since none is used."""
    recorder.error = (grpc.StatusCode[code], "no", ErrorInfo(reason=reason, metadata=metadata))
    exit_code, out, err = run("keys", "claim", TOKEN)
    assert (exit_code, out) == (1, "")
    assert hint in err
    assert "TUMBLER_API_KEY" not in err
    assert "mistyped" not in err


@pytest.mark.parametrize("line", [f"claim {TOKEN} {TOKEN}", f"claim --token {TOKEN}", f"claim {TOKEN} --grace {TOKEN}"])
def test_misuse_shows_no_token(run, recorder, line):
    """Misuse makes no call, and shows no part of a typed token."""
    code, out, err = run("keys", *line.split())
    assert (code, out, recorder.requests) == (2, "", [])
    assert "t0k3n" not in err


def test_help(run):
    """The help says that no calling key is needed, and that arguments are visible."""
    out = " ".join(run("keys", "claim", "--help")[1].replace("│", "").split())
    assert "neither reads nor sends a calling key" in out
    assert "Other users can see arguments" in out
    assert "Example: tumbler keys claim - --output new-key < claim-token" in out
