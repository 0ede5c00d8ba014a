"""The command `tumbler events`."""

import json
import re
import sys
from datetime import datetime, timedelta, timezone

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from tests.unit.cli.conftest import KEY, KEY_ID
from tumbler.v1 import api_key_pb2, event_pb2
from tumbler.v1 import api_key_service_pb2 as pb

EVENT = event_pb2.KeyEvent(
    revision=42,
    type="KEY_EVENT_TYPE_ROTATION_DUE",
    key_id=KEY_ID,
    project_id="acme",
    environment_id="live",
    time=Timestamp(seconds=1_798_761_600),
    actor=api_key_pb2.Actor(key_id="A" * 16, name="operator"),
    detail={"reason": "compromised", "comment": "in a log"},
    hash=b"\xff" * 32,
)

REQUESTS = [
    ("", {}),
    (
        f"--project acme --key acme_live_{KEY_ID}_ --type revoked --type Rotation_Due --type expiring "
        "--since 2027-01-31 --limit 5 --page-token t",
        {
            "project_id": "acme",
            "key_id": KEY_ID,
            "types": ["KEY_EVENT_TYPE_REVOKED", "KEY_EVENT_TYPE_ROTATION_DUE", "KEY_EVENT_TYPE_EXPIRING"],
            "since_time": "2027-01-31T00:00:00Z",
            "page_size": 5,
            "page_token": "t",
        },
    ),
    ("--page-size 5 --all", {"page_size": 5}),
    ("--all", {"page_size": 1000}),
]

USAGE_ERRORS = [
    ("--type bored", "'--type'"),
    ("--type unspecified", "'--type'"),
    ("--since tomorrow", "'--since'"),
    ("--since 99999999d", "'--since'"),
    ("--since 1h30m", "'--since'"),
    ("--limit -1", "'--"),
    (f"--key {KEY}", "'--key'"),
    ("acme", "unexpected extra"),
]


@pytest.mark.parametrize(("line", "request_"), REQUESTS, ids=lambda value: value if isinstance(value, str) else "")
def test_request(run, recorder, line, request_):
    """The request contains what was typed and nothing else."""
    code, _, err = run("events", "list", *line.split())
    assert code == 0, err
    assert MessageToDict(recorder.requests[-1], preserving_proto_field_name=True) == request_


@pytest.mark.parametrize(("line", "word"), USAGE_ERRORS, ids=lambda text: text.replace(KEY, "<key>"))
def test_misuse(run, recorder, line, word):
    """Misuse names the option, makes no call, and shows no key that was typed."""
    code, out, err = run("events", "list", *line.split())
    assert (code, out, recorder.requests) == (2, "", [])
    assert word in err
    assert KEY[:40] not in err


def test_since_a_span(run, recorder):
    """A duration counts back from now, by this machine's clock."""
    earliest = datetime.now(timezone.utc) - timedelta(hours=1)
    run("events", "list", "--since", "1h")
    since = recorder.requests[-1].since_time.ToDatetime(timezone.utc)
    assert earliest <= since <= datetime.now(timezone.utc) - timedelta(hours=1)


def test_every_page(run, recorder):
    """--all follows the page tokens with the same filter, even if --since was a duration."""
    recorder.answers["ListEvents"] = [
        pb.ListEventsResponse(events=[EVENT], next_page_token="two"),
        pb.ListEventsResponse(events=[EVENT, EVENT]),
    ]
    code, out, _ = run("events", "list", "--all", "--since", "1h", "--json")
    assert code == 0
    assert [each.page_token for each in recorder.requests] == ["", "two"]
    assert len({each.since_time.ToJsonString() for each in recorder.requests}) == 1
    assert (len(json.loads(out)["events"]), json.loads(out)["next_page_token"]) == (3, "")


def test_table(run, recorder):
    """The table shows what happened to which key, when and by whom, and how to get the next page."""
    recorder.answers["ListEvents"] = [pb.ListEventsResponse(events=[EVENT, EVENT], next_page_token="p2")]
    lines = run("events", "list")[1].splitlines()
    titles = ["REVISION", "TIME", "TYPE", "KEY", "PROJECT", "ENVIRONMENT", "ACTOR", "DETAIL"]
    assert re.split(r"\s{2,}", lines[0]) == titles
    cells = ["42", "2027-01-01 00:00:00Z", "rotation-due", KEY_ID, "acme", "live", f"operator {'A' * 16}"]
    assert re.split(r"\s{2,}", lines[1]) == [*cells, "comment=in a log reason=compromised"]
    assert lines[3:] == ["More: --page-token p2, or --all."]


def test_a_page_token_goes_with_a_moment(run, recorder):
    """If --since was a duration, the hint for the next page has its instant, because the token belongs to it."""
    recorder.answers["ListEvents"] = [pb.ListEventsResponse(events=[EVENT], next_page_token="p2")]
    hint = run("events", "list", "--since", "1h")[1].splitlines()[-1]
    since = re.search(r"--since (\S+) --page-token p2", hint)[1]
    moment = recorder.requests[-1].since_time
    run("events", "list", "--since", since, "--page-token", "p2")
    assert recorder.requests[-1].since_time == moment


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_table_on_a_terminal(run, recorder, monkeypatch, columns):
    """On a terminal of any width the key's id and the type are complete."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    recorder.answers["ListEvents"] = [pb.ListEventsResponse(events=[EVENT])]
    out = run("events", "list")[1]
    assert KEY_ID in out
    assert "rotation-due" in out


def test_empty_table(run):
    """An empty list says that there are no events."""
    assert run("events", "list") == (0, "No events.\n", "")


def test_a_type_of_a_newer_server(run, recorder):
    """An event type unknown to this version is shown as its number."""
    recorder.answers["ListEvents"] = [pb.ListEventsResponse(events=[event_pb2.KeyEvent(type=99, key_id=KEY_ID)])]
    code, out, _ = run("events", "list")
    assert code == 0
    assert f"99    {KEY_ID}" in out


def test_terminal_escapes(run, recorder):
    """Control characters in a name or a comment are escaped."""
    event = event_pb2.KeyEvent(actor=api_key_pb2.Actor(name="a\x1b[31m"), detail={"comment": "[red]\x9bx\ny"})
    recorder.answers["ListEvents"] = [pb.ListEventsResponse(events=[event])]
    out = run("events", "list")[1]
    assert r"a\x1b[31m" in out
    assert r"comment=[red]\x9bx\ny" in out


def test_json(run, recorder):
    """With --json the response is protobuf JSON with the proto's names."""
    recorder.answers["ListEvents"] = [pb.ListEventsResponse(events=[EVENT])]
    (event,) = json.loads(run("events", "list", "--json")[1])["events"]
    assert (event["revision"], event["type"], event["key_id"]) == ("42", "KEY_EVENT_TYPE_ROTATION_DUE", KEY_ID)
    assert event["actor"] == {"key_id": "A" * 16, "name": "operator"}


@pytest.mark.parametrize("line", ["events list", "keys watch"])
def test_help(run, line):
    """The help describes the command and has an example."""
    code, out, _ = run(*line.split(), "--help")
    assert code == 0
    assert "Example:" in out
    assert f"tumbler {line} --project acme" in out
    assert "--endpoint" in out
