"""A key's rotation schedule and webhook, as set by `keys create` and `keys update`."""

import json
import re

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

from tests.unit.cli.conftest import KEY, KEY_ID
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

URL = "https://hooks.example/tumbler"
OLD_URL = "https://old.example/tumbler"
SECRET = "whsec_" + "QUJD" * 10
PRESENT = api_key_pb2.ApiKey(
    id=KEY_ID, etag="e7", rotation=api_key_pb2.Rotation(interval=Duration(seconds=86400), webhook_url=OLD_URL)
)

UPDATES = [
    (f"--rotation-interval 12h --webhook-url {URL}", False, {"interval": "43200s", "webhook_url": URL}),
    ("--rotation-interval 12h --no-webhook-url", False, {"interval": "43200s"}),
    ("--rotation-interval 12h", True, {"interval": "43200s", "webhook_url": OLD_URL}),
    (f"--webhook-url {URL}", True, {"interval": "86400s", "webhook_url": URL}),
    ("--no-webhook-url", True, {"interval": "86400s"}),
    ("--no-rotation", False, None),
]


def sent(recorder):
    """Return the last request as a dict."""
    return MessageToDict(recorder.requests[-1], preserving_proto_field_name=True)


def test_create(run, recorder):
    """A key is created with a rotation interval and a webhook URL."""
    run("keys", "create", "--project", "acme", "--rotation-interval", "30d", "--webhook-url", URL)
    assert sent(recorder) == {"project_id": "acme", "rotation": {"interval": "2592000s", "webhook_url": URL}}


def test_what_makes_no_schedule_is_the_servers_to_say(run, recorder):
    """A webhook without an interval is sent as typed, because the server has the rule."""
    run("keys", "create", "--project", "acme", "--webhook-url", URL)
    assert sent(recorder)["rotation"] == {"webhook_url": URL}


@pytest.mark.parametrize(("line", "reads", "rotation"), UPDATES, ids=[line for line, *_ in UPDATES])
def test_update(run, recorder, line, reads, rotation):
    """Parts of a schedule that are not named are kept; if they are read first, the etag guards the update."""
    recorder.answers["Get"] = [pb.GetResponse(api_key=PRESENT)]
    code, _, err = run("keys", "update", KEY_ID, *line.split())
    assert code == 0, err
    assert len(recorder.requests) == 1 + reads
    expected = {"id": KEY_ID}
    if rotation is not None:
        expected["rotation"] = rotation
    if reads:
        expected["etag"] = "e7"
    assert sent(recorder) == {"api_key": expected, "update_mask": "rotation"}


def test_a_typed_etag_counts(run, recorder):
    """A typed etag is sent instead of the one that was read."""
    recorder.answers["Get"] = [pb.GetResponse(api_key=PRESENT)]
    run("keys", "update", KEY_ID, "--webhook-url", URL, "--etag", "e1")
    assert sent(recorder)["api_key"]["etag"] == "e1"


def test_a_webhook_secret_for_people(run, recorder):
    """A new webhook's secret is shown once, on a labelled line of stderr."""
    recorder.answers["Create"] = [pb.CreateResponse(api_key=PRESENT, key=KEY, webhook_secret=SECRET)]
    code, out, err = run("keys", "create", "--project", "acme", "--rotation-interval", "30d", "--webhook-url", URL)
    assert (code, out) == (0, f"{KEY}\n")
    assert f"\nwebhook secret: {SECRET}\n" in err
    recorder.answers["Update"] = [pb.UpdateResponse(api_key=PRESENT, webhook_secret=SECRET)]
    code, out, err = run("keys", "update", KEY_ID, "--rotation-interval", "30d", "--webhook-url", URL)
    rows = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    assert (code, rows["rotate every"], rows["webhook"]) == (0, "1d", OLD_URL)
    assert err.startswith(f"webhook secret: {SECRET}\n")


def test_a_webhook_secret_for_programs(run, recorder):
    """With --json the webhook's secret is a field of the answer, and stderr is empty."""
    recorder.answers["Create"] = [pb.CreateResponse(api_key=PRESENT, key=KEY, webhook_secret=SECRET)]
    code, out, err = run("keys", "create", "--project", "acme", "--json")
    assert (code, err) == (0, "")
    assert (json.loads(out)["key"], json.loads(out)["webhook_secret"]) == (KEY, SECRET)
    recorder.answers["Update"] = [pb.UpdateResponse(api_key=PRESENT, webhook_secret=SECRET)]
    _, out, err = run("keys", "update", KEY_ID, "--no-rotation", "--json")
    assert (json.loads(out)["webhook_secret"], err) == (SECRET, "")


def test_no_webhook_secret(run, recorder):
    """If the URL already had a secret, none is mentioned."""
    recorder.answers["Create"] = [pb.CreateResponse(api_key=PRESENT, key=KEY)]
    assert "webhook secret" not in run("keys", "create", "--project", "acme", "--webhook-url", URL)[2]
