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
from tumbler.cli import secret_file
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

TOKEN = "claim_" + "t0k3n" * 6 + "." + "-".join(["t0k3n" * 2] * 4)
"""As long as a real one, and as one may be, with hyphens in it."""

ANSWER = pb.ClaimRotationResponse(
    api_key=api_key_pb2.ApiKey(id=KEY_ID, name="ci"),
    old_api_key=api_key_pb2.ApiKey(key_prefix="old_", grace_expire_time=Timestamp(seconds=1_798_761_600)),
    key=KEY,
)


@pytest.fixture(autouse=True)
def due(recorder, monkeypatch):
    """Have the server answer a claim; no calling key is set anywhere."""
    monkeypatch.delenv("TUMBLER_API_KEY")
    recorder.answers["ClaimRotation"] = [ANSWER]


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (TOKEN, {"claim_token": TOKEN}),
        (f"{TOKEN} --grace 0s", {"claim_token": TOKEN, "grace_period": "0s"}),
        ("- --grace 1d", {"claim_token": TOKEN, "grace_period": "86400s"}),
    ],
    ids=["argument", "grace", "stdin"],
)
def test_request(run, recorder, monkeypatch, line, request_):
    """The token comes from the argument or from stdin, and the old key's grace only where it was typed."""
    monkeypatch.setattr(sys, "stdin", Stdin(f"{TOKEN}\n"))
    code, _, err = run("keys", "claim", *line.split())
    assert code == 0, err
    assert MessageToDict(recorder.requests[-1], preserving_proto_field_name=True) == request_


@pytest.mark.parametrize("arguments", [(), ("--api-key-file", "no-such-file")])
def test_no_calling_key(run, recorder, monkeypatch, arguments):
    """The token is the only credential: no calling key is demanded, and one that is there is not sent."""
    assert run("keys", "claim", TOKEN, *arguments)[0] == 0
    monkeypatch.setenv("TUMBLER_API_KEY", "of-somebody")
    assert run("keys", "claim", TOKEN, *arguments)[0] == 0
    assert len(recorder.requests) == 2
    assert not {"authorization", "x-api-key"} & set(recorder.metadata)


def test_output(run):
    """The new key stands alone on stdout; stderr says what it is, and until when the old one works."""
    code, out, err = run("keys", "claim", TOKEN)
    assert (code, out) == (0, f"{KEY}\n")
    assert "not shown again" in err
    assert KEY_ID in err
    assert "The old key, old_, works until 2027-01-01 00:00:00Z." in err
    assert TOKEN not in err


def test_json(run):
    """For programs a claim is one JSON object, as a rotation is."""
    code, out, err = run("keys", "claim", TOKEN, "--json")
    answer = json.loads(out)
    assert (code, err, answer["key"], answer["api_key"]["id"]) == (0, "", KEY, KEY_ID)
    assert answer["old_api_key"]["key_prefix"] == "old_"


@pytest.mark.parametrize("as_json", [False, True])
def test_into_a_file(run, tmp_path, as_json):
    """With --output the file holds the key and a newline, for its owner alone, and nothing shows the key."""
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


def test_an_older_file(run, tmp_path):
    """A file of a former key is replaced, whatever its mode was, and nothing else is left in the folder."""
    path = tmp_path / "key"
    path.write_text("the former key, which was a good deal longer " * 10)
    path.chmod(0o644)
    assert run("keys", "claim", TOKEN, "--output", str(path))[0] == 0
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (f"{KEY}\n", 0o600)
    assert os.listdir(tmp_path) == ["key"]


def test_the_file_is_whole_at_any_moment(run, recorder, tmp_path, monkeypatch):
    """While the server is asked, the former key is in place, and what is begun beside it is for its owner alone."""
    path = tmp_path / "key"
    path.write_text("former")
    seen = []

    def look(rpc, request, context):
        seen.extend((each.name, stat.S_IMODE(each.stat().st_mode)) for each in tmp_path.iterdir() if each != path)
        seen.append(path.read_text())
        return ANSWER

    monkeypatch.setattr(recorder, "handle", look)
    assert run("keys", "claim", TOKEN, "--output", str(path))[0] == 0
    (name, mode), former = seen
    assert (mode, former) == (0o600, "former")
    assert not (tmp_path / name).exists()


def no_folder(tmp_path, monkeypatch):
    """Give a path in a folder that does not exist."""
    return tmp_path / "none" / "key"


def folder(tmp_path, monkeypatch):
    """Give a path where a folder is."""
    (tmp_path / "key").mkdir()
    return tmp_path / "key"


def full_disk(tmp_path, monkeypatch):
    """Give a path on a disk that is full."""

    def begin(**_):
        (tmp_path / "begun").touch()
        return os.open("/dev/full", os.O_RDWR), str(tmp_path / "begun")

    monkeypatch.setattr(secret_file.tempfile, "mkstemp", begin)
    return tmp_path / "key"


@pytest.mark.parametrize("place", [no_folder, folder, full_disk])
def test_a_file_that_cannot_be_written(run, recorder, tmp_path, monkeypatch, place):
    """It is found out before the claim is made, so that no secret is lost, and nothing is left behind."""
    path = place(tmp_path, monkeypatch)
    before = os.listdir(tmp_path)
    code, out, err = run("keys", "claim", TOKEN, "--output", str(path))
    assert (code, out, recorder.requests) == (2, "", [])
    assert "'--output'" in err
    assert os.listdir(tmp_path) == before


def test_a_refused_claim_leaves_no_file(run, recorder, tmp_path):
    """Where the server refuses, a former file stays as it is, and nothing stays beside it."""
    path = tmp_path / "key"
    path.write_text("former")
    recorder.error = (grpc.StatusCode.FAILED_PRECONDITION, "not due", ErrorInfo(reason="CLAIM_OUTDATED"))
    code, out, err = run("keys", "claim", TOKEN, "--output", str(path))
    assert (code, out) == (1, "")
    assert "CLAIM_OUTDATED" in err
    assert (os.listdir(tmp_path), path.read_text()) == (["key"], "former")


def test_a_place_that_was_lost_meanwhile(run, tmp_path, monkeypatch):
    """If the file cannot take its place after the claim, the key stays in a file that the message names."""

    def busy(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(type(tmp_path), "replace", busy)
    code, out, err = run("keys", "claim", TOKEN, "--output", str(tmp_path / "key"))
    (left,) = tmp_path.iterdir()
    assert (code, out) == (1, "")
    assert f"It is in {left.name}, in the same folder." in err
    assert (left.read_text(), stat.S_IMODE(left.stat().st_mode)) == (f"{KEY}\n", 0o600)


def test_a_disk_that_failed_meanwhile(run, tmp_path, monkeypatch):
    """If the key itself cannot be written after the claim, the message says how to replace it."""
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
        f"It is lost. Replace it: tumbler keys rotate {KEY_ID}",
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "reason", "metadata", "hint"),
    [
        ("UNAUTHENTICATED", "CLAIM_TOKEN_INVALID", {}, "Hand over the claim_token of this server's webhook"),
        ("FAILED_PRECONDITION", "CLAIM_OUTDATED", {"key_id": KEY_ID}, "brings a new token."),
        ("FAILED_PRECONDITION", "KEY_SUPERSEDED", {"replaced_by_key_id": "B" * 16}, f"Use its successor, {'B' * 16}."),
    ],
)
def test_refusals(run, recorder, code, reason, metadata, hint):
    """A refusal says what to do; none speaks of a calling key, since there is none."""
    recorder.error = (grpc.StatusCode[code], "no", ErrorInfo(reason=reason, metadata=metadata))
    exit_code, out, err = run("keys", "claim", TOKEN)
    assert (exit_code, out) == (1, "")
    assert hint in err
    assert "TUMBLER_API_KEY" not in err
    assert "mistyped" not in err


@pytest.mark.parametrize("line", [f"claim {TOKEN} {TOKEN}", f"claim --token {TOKEN}", f"claim {TOKEN} --grace {TOKEN}"])
def test_misuse_shows_no_token(run, recorder, line):
    """A misuse calls nothing, and shows no part of a token that was typed."""
    code, out, err = run("keys", *line.split())
    assert (code, out, recorder.requests) == (2, "", [])
    assert "t0k3n" not in err


def test_help(run):
    """The help says that no calling key is needed, and that arguments can be seen."""
    out = " ".join(run("keys", "claim", "--help")[1].replace("│", "").split())
    assert "no calling key is looked for" in out
    assert "Other users can see arguments" in out
    assert "Example: tumbler keys claim - --output new-key < claim-token" in out
