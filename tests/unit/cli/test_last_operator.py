"""The questions before the last working operator's key is revoked, deactivated or narrowed."""

import io
import json
import sys
import time

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from tests.unit.cli.conftest import KEY_ID, Stdin
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

LAST = api_key_pb2.ApiKey(id=KEY_ID, name="first operator", project_id="tumbler", scopes=["tumbler:*"])
OTHER = api_key_pb2.ApiKey(id="Z" * 16, name="second operator", project_id="tumbler", scopes=["tumbler:*"])

ENDING = {
    "revoke": f"revoke {KEY_ID}",
    "revoke, by what lists show": f"revoke tmb_{KEY_ID}_",
    "deactivate": f"deactivate {KEY_ID}",
    "narrower scopes": f"update {KEY_ID} --scope tumbler:keys:read",
    "no scopes": f"update {KEY_ID} --no-scopes",
    "an expiry": f"update {KEY_ID} --expires 2027-01-31",
    "a successor that expires": f"rotate {KEY_ID} --ttl 1h",
    "networks": f"update {KEY_ID} --allow-cidr 10.0.0.0/8 --name new",
}
HARMLESS = {
    "activate": f"activate {KEY_ID}",
    "another name": f"update {KEY_ID} --name new --owner me",
    "the same scope and more": f"update {KEY_ID} --scope tumbler:* --scope orders:read",
    "no expiry": f"update {KEY_ID} --never-expires --no-allow-cidrs",
    "rotate": f"rotate {KEY_ID}",
    "another key": f"deactivate {'Y' * 16}",
}


class Terminal(io.StringIO):
    """A stdin that claims to be a terminal."""

    def isatty(self):
        """Return True."""
        return True


@pytest.fixture
def changes(recorder):
    """Return a function that returns the calls that change something."""
    reading = (pb.ListRequest, pb.GetRequest)
    return lambda: [request for request in recorder.requests if not isinstance(request, reading)]


@pytest.fixture
def last(recorder):
    """Have one operator's key work."""
    recorder.answers["List"] = [pb.ListResponse(api_keys=[LAST])]


@pytest.fixture
def asked(monkeypatch):
    """Return a function that simulates a terminal with these answers, and returns the questions asked."""

    def sit(*answers):
        questions, left = [], list(answers)
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("typer.confirm", lambda text, **_: questions.append(text) or left.pop(0))
        return questions

    return sit


@pytest.mark.parametrize("line", ENDING.values(), ids=list(ENDING))
@pytest.mark.parametrize("answers", [(False,), (True, False), (True, True)])
def test_it_asks_twice(run, recorder, changes, last, asked, line, answers):
    """On a terminal the command asks twice, names the remedy, and changes nothing unless both answers are yes."""
    questions = asked(*answers)
    code, _, err = run("keys", *line.split())
    assert (code, len(questions), len(changes())) == ((0, 2, 1) if all(answers) else (1, len(answers), 0))
    if len(questions) == 2 or not line.startswith("revoke"):
        assert "the last working operator's key" in err
        assert "tumbler-server operator-key --output FILE" in err
    if code:
        assert "Nothing was changed." in err


@pytest.mark.parametrize("line", ENDING.values(), ids=list(ENDING))
def test_a_script_says_so(run, changes, last, line):
    """Without a terminal the change is refused; the message names the remedy and the flag for scripts."""
    code, out, err = run("keys", *line.split())
    assert (code, out, changes()) == (1, "", [])
    assert "tumbler-server operator-key --output FILE" in err
    assert "--yes" in err
    error = json.loads(run("keys", *line.split(), "--json")[2])["error"]
    assert (error["code"], "--yes" in error["hint"], changes()) == ("LAST_OPERATOR", True, [])


@pytest.mark.parametrize("line", ENDING.values(), ids=list(ENDING))
def test_yes_asks_nothing(run, recorder, last, line):
    """With --yes the command asks nothing, and its only call is the change."""
    assert run("keys", *line.split(), "--yes")[0] == 0
    assert len(recorder.requests) == 1


@pytest.mark.parametrize("line", HARMLESS.values(), ids=list(HARMLESS))
def test_what_takes_nothing_away(run, changes, last, line):
    """A change that neither ends nor narrows the key asks nothing."""
    assert run("keys", *line.split())[0] == 0
    assert len(changes()) == 1


@pytest.mark.parametrize(
    ("where", "is_it"),
    [
        ("--name first\\ operator", True),
        ("--name first\\ operator --project tumbler", True),
        ("--name first\\ operator --project acme", False),
        ("--name first\\ operator --environment live", False),
        ("--name second", False),
    ],
)
def test_by_name(run, changes, last, where, is_it):
    """A key that is deactivated by its name is recognised, too."""
    arguments = [part.replace("\\", " ") for part in where.replace("\\ ", "\\").split()]
    assert run("keys", "deactivate", *arguments)[0] == (1 if is_it else 0)
    assert len(changes()) == (0 if is_it else 1)


@pytest.mark.parametrize("keys", [[], [OTHER], [LAST, OTHER]])
def test_others_work(run, recorder, changes, keys):
    """If another operator's key works, there is no further question."""
    recorder.answers["List"] = [pb.ListResponse(api_keys=keys)]
    assert run("keys", "revoke", KEY_ID)[0] == 0
    assert len(changes()) == 1


@pytest.mark.parametrize(
    "fields",
    [{"allowed_cidrs": ["203.0.113.1/32"]}, {"expire_time": Timestamp(seconds=int(time.time()) + 3_600)}],
    ids=["bound to networks", "about to expire"],
)
def test_others_that_may_not_do(run, recorder, changes, fields):
    """A key restricted to networks, or soon to expire, does not count as another operator's key."""
    weak = api_key_pb2.ApiKey(id="Z" * 16, **fields)
    recorder.answers["List"] = [pb.ListResponse(api_keys=[LAST, weak])] * 2
    assert run("keys", "deactivate", KEY_ID)[0] == 1
    assert run("keys", "deactivate", weak.id)[0] == 0
    assert len(changes()) == 1


@pytest.mark.parametrize("status", ["PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"])
def test_who_cannot_know_is_not_held_up(run, recorder, changes, monkeypatch, status):
    """If the keys cannot be listed, nothing is asked. A note says so, unless the caller lacks the permission."""
    recorder.errors["List"] = (grpc.StatusCode[status], "no")
    monkeypatch.setattr(sys, "stdin", Stdin())
    code, _, stderr = run("keys", "revoke", KEY_ID, "--timeout", "1m")
    assert code == 0
    assert (f"the last working operator's key ({status})" in stderr) is (status != "PERMISSION_DENIED")
    assert len(changes()) == 1
    listing, _ = recorder.deadlines
    assert listing < 3


def test_what_is_asked_of_the_server(run, recorder):
    """The command lists the active keys of the reserved project that carry every scope."""
    run("keys", "revoke", KEY_ID)
    assert MessageToDict(recorder.requests[0], preserving_proto_field_name=True) == {
        "project_id": "tumbler",
        "scope": "tumbler:*",
        "states": ["STATE_ACTIVE"],
        "page_size": 1_000,
    }


def test_a_closed_stdin_is_nobody(run, changes, last, monkeypatch):
    """A closed stdin is not a terminal, so the change is refused."""
    monkeypatch.setattr(sys, "stdin", None)
    assert run("keys", "revoke", KEY_ID)[0] == 1
    assert changes() == []
