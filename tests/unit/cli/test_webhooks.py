"""The commands for webhooks: `tumbler events deliveries`, `redeliver` and `rotate-secret`."""

import json
import re
import sys

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo

from tests.unit.cli.conftest import KEY, KEY_ID
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import event_pb2

DELIVERY_ID = "msg_" + "0123456789abcdef" * 2
URL = "https://hooks.example/tumbler"
SECRET = "whsec_" + "QUJD" * 10 + "+/="
YEAR_2027 = Timestamp(seconds=1_798_761_600)

DELIVERY = event_pb2.WebhookDelivery(
    id=DELIVERY_ID,
    revision=42,
    type="key.rotation_due",
    key_id=KEY_ID,
    project_id="acme",
    url=URL,
    state="DELIVERY_STATE_PENDING",
    attempts=3,
    create_time=YEAR_2027,
    last_attempt_time=Timestamp(seconds=1_798_761_660),
    next_attempt_time=Timestamp(seconds=1_798_762_000),
    last_status_code=503,
    last_error="not a success",
)

REQUESTS = [
    ("deliveries", {}),
    (
        f"deliveries --project acme --key acme_live_{KEY_ID}_ --state failed --state Endpoint_Off --limit 5 "
        "--page-token t",
        {
            "project_id": "acme",
            "key_id": KEY_ID,
            "states": ["DELIVERY_STATE_FAILED", "DELIVERY_STATE_ENDPOINT_OFF"],
            "page_size": 5,
            "page_token": "t",
        },
    ),
    ("deliveries --all", {"page_size": 1000}),
    (f"redeliver {DELIVERY_ID}", {"delivery_id": DELIVERY_ID}),
    (f"rotate-secret {URL}", {"webhook_url": URL}),
    (f"rotate-secret {URL} --project acme", {"project_id": "acme", "webhook_url": URL}),
]

USAGE_ERRORS = [
    ("deliveries --state bored", "'--state'"),
    ("deliveries --state unspecified", "'--state'"),
    ("deliveries --limit -1", "'--"),
    (f"deliveries --key {KEY}", "'--key'"),
    ("redeliver", "DELIVERY_ID"),
    ("rotate-secret", "URL"),
]

REFUSALS = [
    ("deliveries", "FAILED_PRECONDITION", "WEBHOOKS_NEED_PEPPER", "to add a pepper file"),
    (f"redeliver {DELIVERY_ID}", "NOT_FOUND", "DELIVERY_NOT_FOUND", "tumbler events deliveries"),
    (f"redeliver {DELIVERY_ID}", "FAILED_PRECONDITION", "DELIVERY_OUTDATED", "needs to be sent"),
    (f"rotate-secret {URL}", "NOT_FOUND", "ENDPOINT_NOT_FOUND", "exactly as tumbler keys get"),
]


@pytest.mark.parametrize(("line", "request_"), REQUESTS, ids=lambda value: value if isinstance(value, str) else "")
def test_request(run, recorder, line, request_):
    """The request contains what was typed and nothing else."""
    code, _, err = run("events", *line.split())
    assert code == 0, err
    assert MessageToDict(recorder.requests[-1], preserving_proto_field_name=True) == request_


@pytest.mark.parametrize(("line", "word"), USAGE_ERRORS, ids=lambda text: text.replace(KEY, "<key>"))
def test_misuse(run, recorder, line, word):
    """Misuse names the option, makes no call, and shows no key that was typed."""
    code, out, err = run("events", *line.split())
    assert (code, out, recorder.requests) == (2, "", [])
    assert word in err
    assert KEY[:40] not in err


@pytest.mark.parametrize(("line", "code", "reason", "hint"), REFUSALS, ids=lambda text: text[:24])
def test_refusal(run, recorder, line, code, reason, hint):
    """A refusal comes with its remedy."""
    recorder.error = (grpc.StatusCode[code], "no", ErrorInfo(reason=reason))
    exit_code, out, err = run("events", *line.split())
    assert (exit_code, out) == (1, "")
    assert hint in err


def test_every_page(run, recorder):
    """--all follows the page tokens with the same filter."""
    recorder.answers["ListDeliveries"] = [
        pb.ListDeliveriesResponse(deliveries=[DELIVERY], next_page_token="two"),
        pb.ListDeliveriesResponse(deliveries=[DELIVERY, DELIVERY]),
    ]
    code, out, _ = run("events", "deliveries", "--all", "--state", "pending", "--json")
    assert code == 0
    assert [(each.page_token, len(each.states), each.page_size) for each in recorder.requests] == [
        ("", 1, 1000),
        ("two", 1, 1000),
    ]
    assert (len(json.loads(out)["deliveries"]), json.loads(out)["next_page_token"]) == (3, "")


def test_table(run, recorder):
    """The table shows what was sent about which key, its state, the last answer and the next attempt."""
    recorder.answers["ListDeliveries"] = [pb.ListDeliveriesResponse(deliveries=[DELIVERY] * 2, next_page_token="p2")]
    lines = run("events", "deliveries")[1].splitlines()
    titles = ["TIME", "TYPE", "KEY", "STATE", "ATTEMPTS", "LAST ANSWER", "NEXT ATTEMPT", "DELIVERY"]
    assert re.split(r"\s{2,}", lines[0]) == titles
    cells = ["2027-01-01 00:00:00Z", "key.rotation_due", KEY_ID, "pending", "3", "503 not a success"]
    assert re.split(r"\s{2,}", lines[1]) == [*cells, "2027-01-01 00:06:40Z", DELIVERY_ID]
    assert lines[3:] == ["More: --page-token p2, or --all."]


@pytest.mark.parametrize(
    ("code", "error", "shown"),
    [
        (0, "", ""),
        (204, "", "204"),
        (0, "no connection", "no connection"),
        (503, "answered 503", "answered 503"),
        (500, "a\x1b[31m", r"500 a\x1b[31m"),
    ],
)
def test_last_answer(run, recorder, code, error, shown):
    """The last answer shows the status once, then the error text with control characters escaped."""
    delivery = event_pb2.WebhookDelivery(id="msg_x", last_status_code=code, last_error=error)
    recorder.answers["ListDeliveries"] = [pb.ListDeliveriesResponse(deliveries=[delivery])]
    title, row = run("events", "deliveries")[1].splitlines()
    begin = title.index("LAST ANSWER")
    assert row[begin : title.index("NEXT ATTEMPT")].strip() == shown


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_table_on_a_terminal(run, recorder, monkeypatch, columns):
    """On a terminal of any width a delivery's id and state are complete."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    recorder.answers["ListDeliveries"] = [pb.ListDeliveriesResponse(deliveries=[DELIVERY])]
    out = run("events", "deliveries")[1]
    assert DELIVERY_ID in out
    assert "pending" in out


def test_empty_table(run):
    """An empty list says that there are no deliveries."""
    assert run("events", "deliveries") == (0, "No deliveries.\n", "")


def test_redeliver(run, recorder):
    """The command redeliver shows the delivery's record."""
    recorder.answers["Redeliver"] = [pb.RedeliverResponse(delivery=DELIVERY)]
    code, out, err = run("events", "redeliver", DELIVERY_ID)
    rows = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert (rows["id"], rows["url"], rows["state"], rows["attempts"]) == (DELIVERY_ID, URL, "pending", "3")
    assert (rows["last answer"], rows["next attempt"]) == ("503 not a success", "2027-01-01 00:06:40Z")


def test_redeliver_json(run, recorder):
    """With --json the delivery is protobuf JSON."""
    recorder.answers["Redeliver"] = [pb.RedeliverResponse(delivery=DELIVERY)]
    delivery = json.loads(run("events", "redeliver", DELIVERY_ID, "--json")[1])["delivery"]
    assert (delivery["id"], delivery["state"]) == (DELIVERY_ID, "DELIVERY_STATE_PENDING")


def test_rotate_secret(run, recorder):
    """The new secret is alone on stdout; stderr says until when the old one also signs."""
    recorder.answers["RotateWebhookSecret"] = [
        pb.RotateWebhookSecretResponse(webhook_secret=SECRET, previous_expire_time=YEAR_2027)
    ]
    code, out, err = run("events", "rotate-secret", URL)
    assert (code, out) == (0, f"{SECRET}\n")
    assert "The old secret also signs until 2027-01-01 00:00:00Z." in err
    assert SECRET not in err
    answer = json.loads(run("events", "rotate-secret", URL, "--json")[1])
    assert answer == {"webhook_secret": SECRET, "previous_expire_time": "2027-01-01T00:00:00Z"}


def test_errors_show_no_webhook_secret(run, recorder):
    """A webhook secret typed as a URL is not shown by misuse, and redacted in the server's message."""
    assert "QUJD" not in run("events", "rotate-secret", URL, SECRET)[2]
    recorder.error = (grpc.StatusCode.NOT_FOUND, f"no {SECRET}.")
    assert run("events", "rotate-secret", SECRET)[2] == "NOT_FOUND: no ***.\n"
    error = json.loads(run("events", "rotate-secret", SECRET, "--json")[2])["error"]
    assert error["message"] == "no ***."


@pytest.mark.parametrize("name", ["deliveries", "redeliver", "rotate-secret"])
def test_help(run, name):
    """Each command's help describes it, names the scope that it needs, and has an example."""
    code, out, _ = run("events", name, "--help")
    assert code == 0
    assert "The calling key needs the scope" in " ".join(out.split())
    assert f"tumbler events {name} " in out
