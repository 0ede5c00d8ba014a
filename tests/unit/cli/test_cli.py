import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from threading import Event

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

import tumbler
from tests.unit.cli import server as cli_server
from tests.unit.cli.conftest import CALLER, KEY, KEY_ID, Stdin
from tumbler.target import is_loopback
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb

UUID = "8c5a2f0e-7c1d-4a53-9b0c-1f2e3d4c5b6a"
YEAR_2027 = Timestamp(seconds=1_798_761_600)

API_KEY = api_key_pb2.ApiKey(
    id=KEY_ID,
    project_id="acme",
    environment_id="live",
    name="ci",
    key_prefix=f"acme_live_{KEY_ID}_",
    owner_id="alice",
    scopes=["orders:read", "orders:write"],
    metadata={"team": "blue"},
    state="STATE_ACTIVE",
    create_time=Timestamp(seconds=1_767_225_600),
    created_by=api_key_pb2.Actor(key_id="C" * 16, name="operator"),
    expire_time=YEAR_2027,
    rotation=api_key_pb2.Rotation(
        interval=Duration(seconds=90 * 86400), webhook_url="https://hooks.example/tumbler", next_time=YEAR_2027
    ),
    etag="e1",
)


class Terminal(io.StringIO):
    """A stdin that claims to be a terminal."""

    def isatty(self):
        """Return True."""
        return True


def sent(recorder):
    """Return the last request as plain data."""
    return MessageToDict(recorder.requests[-1], preserving_proto_field_name=True)


REQUESTS = [
    ("create --project acme", {"project_id": "acme"}),
    (
        "create --project acme --environment live --name ci --owner alice --scope a:b --scope c --metadata k=v=w "
        f"--metadata l= --allow-cidr 192.0.2.0/24 --allow-cidr ::1 --ttl 90d --prefix acme_live "
        f"--rotation-interval 7d --request-id {UUID} --validate-only",
        {
            "project_id": "acme",
            "environment_id": "live",
            "name": "ci",
            "owner_id": "alice",
            "scopes": ["a:b", "c"],
            "metadata": {"k": "v=w", "l": ""},
            "allowed_cidrs": ["192.0.2.0/24", "::1"],
            "ttl": "7776000s",
            "prefix": "acme_live",
            "rotation": {"interval": "604800s"},
            "request_id": UUID,
            "validate_only": True,
        },
    ),
    ("create --project acme --expires 2027-01-31", {"project_id": "acme", "expire_time": "2027-01-31T00:00:00Z"}),
    (f"get {KEY_ID}", {"key_id": KEY_ID}),
    (f"get acme_live_{KEY_ID}_", {"key_id": KEY_ID}),
    ("list", {}),
    (
        "list --project acme --environment live --owner alice --state active --state REVOKED --scope a:b --search ci "
        "--order-by name --limit 5 --offset 6 --page-token t --total",
        {
            "project_id": "acme",
            "environment_id": "live",
            "owner_id": "alice",
            "states": ["STATE_ACTIVE", "STATE_REVOKED"],
            "scope": "a:b",
            "search": "ci",
            "order_by": "name",
            "page_size": 5,
            "skip": 6,
            "page_token": "t",
            "show_total_size": True,
        },
    ),
    ("list --page-size 5 --skip 6", {"page_size": 5, "skip": 6}),
    (f"update {KEY_ID} --name new", {"api_key": {"id": KEY_ID, "name": "new"}, "update_mask": "name"}),
    (
        f"update {KEY_ID} --owner bob --scope a --scope b --metadata k=v --allow-cidr ::1 --expires "
        "2027-01-31T12:00:00+02:00 --rotation-interval 12h --etag e1",
        {
            "api_key": {
                "id": KEY_ID,
                "owner_id": "bob",
                "scopes": ["a", "b"],
                "metadata": {"k": "v"},
                "allowed_cidrs": ["::1"],
                "expire_time": "2027-01-31T10:00:00Z",
                "rotation": {"interval": "43200s"},
                "etag": "e1",
            },
            "update_mask": "ownerId,scopes,metadata,allowedCidrs,expireTime,rotation",
        },
    ),
    (
        f"update {KEY_ID} --owner= --no-scopes --no-metadata --no-allow-cidrs --never-expires --no-rotation",
        {
            "api_key": {"id": KEY_ID},
            "update_mask": "ownerId,scopes,metadata,allowedCidrs,expireTime,rotation",
        },
    ),
    (f"activate {KEY_ID}", {"key_id": KEY_ID, "active": True}),
    (f"deactivate {KEY_ID}", {"key_id": KEY_ID}),
    ("deactivate --name ci", {"by_name": {"name": "ci"}}),
    (
        "activate --name ci --project acme --environment live",
        {"by_name": {"project_id": "acme", "environment_id": "live", "name": "ci"}, "active": True},
    ),
    (f"revoke {KEY_ID}", {"key_id": KEY_ID}),
    (
        f"revoke {KEY_ID} --reason owner-left --comment bye --yes",
        {"key_id": KEY_ID, "reason": "REVOKE_REASON_OWNER_LEFT", "comment": "bye"},
    ),
    *(
        (f"rotate {KEY_ID} {typed}", {"key_id": KEY_ID, **({"grace_period": grace} if grace else {}), **ends})
        for typed, grace, ends in (
            ("", "604800s", {"old_key_ends": "OLD_KEY_ENDS_ON_FIRST_USE"}),
            ("--grace 1d", "86400s", {}),
            ("--grace-period 1d", "86400s", {}),
            ("--old-key-ends first-use", "604800s", {"old_key_ends": "OLD_KEY_ENDS_ON_FIRST_USE"}),
            ("--old-key-ends first-use --grace 1h", "3600s", {"old_key_ends": "OLD_KEY_ENDS_ON_FIRST_USE"}),
            ("--old-key-ends grace-end", "", {"old_key_ends": "OLD_KEY_ENDS_AT_GRACE_END"}),
            ("--old-key-ends grace-end --grace 0s", "0s", {"old_key_ends": "OLD_KEY_ENDS_AT_GRACE_END"}),
        )
    ),
    (
        f"rotate {KEY_ID} --grace 0s --ttl 1h --request-id {UUID}",
        {"key_id": KEY_ID, "grace_period": "0s", "ttl": "3600s", "request_id": UUID},
    ),
    (
        f"rotate {KEY_ID} --grace 1500ms --expires 2027-01-31",
        {"key_id": KEY_ID, "grace_period": "1.500s", "expire_time": "2027-01-31T00:00:00Z"},
    ),
    (f"verify {KEY}", {"key": KEY}),
    (
        f"verify {KEY} --scope a --scope b --client-ip ::1 --project acme --environment live --fresh",
        {
            "key": KEY,
            "required_scopes": ["a", "b"],
            "client_ip": "::1",
            "project_id": "acme",
            "environment_id": "live",
            "consistency": {"fully_consistent": True},
        },
    ),
]


class TestRequests:
    """The requests that the commands on keys send."""

    @pytest.mark.parametrize(("line", "request_"), REQUESTS, ids=lambda value: value if isinstance(value, str) else "")
    def test_request(self, run, recorder, line, request_):
        """The request contains what was typed and nothing else, and the call carries the calling key."""
        code, _, err = run("keys", *line.split())
        assert sent(recorder) == request_, err
        assert code == (1 if line.startswith("verify") else 0)
        assert recorder.metadata["authorization"] == f"Bearer {CALLER}"

    def test_every_page(self, run, recorder):
        """--all requests large pages and follows their tokens; only the first request has --skip and --total."""
        recorder.answers["List"] = [
            pb.ListResponse(api_keys=[API_KEY], next_page_token="two", total_size=9),
            pb.ListResponse(api_keys=[API_KEY, API_KEY], next_page_token="three"),
            pb.ListResponse(api_keys=[API_KEY]),
        ]
        code, out, _ = run("keys", "list", "--all", "--total", "--skip", "1", "--search", "c", "--json")
        assert code == 0
        assert [
            (each.page_token, each.skip, each.show_total_size, each.page_size, each.search)
            for each in recorder.requests
        ] == [("", 1, True, 1000, "c"), ("two", 0, False, 1000, "c"), ("three", 0, False, 1000, "c")]
        answer = json.loads(out)
        assert (len(answer["api_keys"]), answer["next_page_token"], answer["total_size"]) == (4, "", 9)


USAGE_ERRORS = [
    ("create", "'--project'"),
    ("create --project acme --ttl 5", "'--ttl'"),
    ("create --project acme --ttl 1h30m", "'--ttl'"),
    ("create --project acme --ttl -5s", "'--ttl'"),
    ("create --project acme --ttl ٥s", "'--ttl'"),
    ("create --project acme --ttl 999999999999999999d", "'--ttl'"),
    ("create --project acme --ttl 315576000001s", "'--ttl'"),
    ("create --project acme --expires tomorrow", "'--expires'"),
    ("create --project acme --expires 2027-02-30", "'--expires'"),
    ("create --project acme --expires 2027-01-31T00:00:00", "'--expires'"),
    ("create --project acme --expires 0001-01-01T00:00:00+23:59", "'--expires'"),
    ("create --project acme --expires 2027-01-31 --ttl 1h", "'--expires'"),
    ("create --project acme --metadata novalue", "'--metadata'"),
    ("create --project acme --metadata =v", "'--metadata'"),
    ("create --project acme --metadata k=1 --metadata k=2", "'--metadata'"),
    ("create --project acme --request-id 5", "'--request-id'"),
    ("list --state alive", "'--state'"),
    ("list --state unspecified", "'--state'"),
    ("list --limit -1", "'--"),
    ("list --limit 99999999999", "'--"),
    (f"get {KEY}", "KEY_ID"),
    (f"get {KEY[:40]}", "KEY_ID"),
    (f"get {'x' * 60}", "KEY_ID"),
    (f"update {KEY_ID}", "at least one field"),
    (f"update {KEY_ID} --etag e1", "at least one field"),
    (f"update {KEY_ID} --scope a --no-scopes", "--no-scopes"),
    (f"update {KEY_ID} --metadata k=v --no-metadata", "--no-metadata"),
    (f"update {KEY_ID} --allow-cidr ::1 --no-allow-cidrs", "--no-allow-cidrs"),
    (f"update {KEY_ID} --expires 2027-01-31 --never-expires", "--never-expires"),
    (f"update {KEY_ID} --rotation-interval 7d --no-rotation", "--no-rotation"),
    (f"update {KEY_ID} --webhook-url https://a.example --no-rotation", "--no-rotation"),
    (f"update {KEY_ID} --webhook-url https://a.example --no-webhook-url", "--no-webhook-url"),
    ("activate", "KEY_ID"),
    (f"activate {KEY_ID} --name ci", "KEY_ID"),
    (f"deactivate {KEY_ID} --project acme", "KEY_ID"),
    (f"revoke {KEY_ID} --reason bored", "'--reason'"),
    (f"verify {KEY} --key-file k.txt", "KEY"),
    ("verify --key-file /no/such/file", "'--key-file'"),
    ("verify --api-key-file - --key-file -", "'--key-file'"),
    (f"verify {KEY} {KEY}", "unexpected extra"),
    (f"verify --key {KEY}", "--key"),
    (f"{KEY}", "No such command"),
    ("list --timeout 0s", "'--timeout'"),
    ("list --endpoint http://127.0.0.1:1", "'--endpoint'"),
    ("list --api-key-file /no/such/file", "'--api-key-file'"),
    ("list --tls-ca /no/such/file", "'--tls-ca'"),
    ("list --tls-cert some.pem", "'--tls-cert'"),
    ("list --tls --insecure", "'--insecure'"),
    ("list --name \udcff", "UTF-8"),
]


class TestMisuse:
    """Misuse exits with 2 and sends nothing."""

    @pytest.mark.parametrize(("line", "word"), USAGE_ERRORS, ids=lambda text: ascii(text.replace(KEY, "<key>"))[:60])
    def test_usage_error(self, run, recorder, line, word):
        """The message names the option and shows no key that was typed; no call is made."""
        code, out, err = run("keys", *line.split(" "))
        assert (code, out, recorder.requests) == (2, "", [])
        assert word in err
        assert "Traceback" not in err
        assert KEY[:40] not in err

    def test_as_json(self, run):
        """With --json the error is JSON, and its hint names the help to read."""
        code, out, err = run("keys", "list", "--json", "--state", "alive")
        error = json.loads(err)["error"]
        assert (code, out, error["code"], error["hint"]) == (2, "", "USAGE", "tumbler keys list --help")
        assert "active, inactive" in error["message"]

    def test_no_calling_key(self, run, recorder, monkeypatch):
        """Without a calling key, the message names the variable and the option to set."""
        monkeypatch.delenv("TUMBLER_API_KEY")
        code, _, err = run("keys", "list")
        assert (code, recorder.requests) == (2, [])
        assert "TUMBLER_API_KEY" in err
        assert "--api-key-file" in err

    @pytest.mark.parametrize("key", ["two words", "bell\a", "é" * 3, f"{CALLER}\n{CALLER}"])
    def test_calling_key_of_no_such_form(self, run, monkeypatch, key):
        """A key that cannot be sent in a header is refused before gRPC could print it."""
        monkeypatch.setenv("TUMBLER_API_KEY", key)
        code, _, err = run("keys", "list")
        assert code == 2
        assert "one key on one line" in err
        assert key not in err

    @pytest.mark.parametrize("endpoint", ["192.0.2.1:50051", "tumbler.example:50051", "dns:///tumbler.example:1"])
    def test_plaintext_to_another_machine(self, run, monkeypatch, endpoint):
        """Plaintext to another machine is refused, whether the endpoint comes from an option or the environment."""
        code, _, err = run("keys", "list", "--endpoint", endpoint)
        assert code == 2
        assert "--insecure" in err
        monkeypatch.setenv("TUMBLER_ENDPOINT", endpoint)
        assert run("keys", "list")[0] == 2

    def test_insecure(self, run):
        """--insecure allows plaintext to another machine; here the address does not answer in time."""
        code, _, err = run(
            "keys", "list", "--endpoint", "ipv4:127.0.0.1:1,192.0.2.1:1", "--insecure", "--timeout", "1ms"
        )
        assert code == 3, err


class TestLoopback:
    """The targets to which plaintext is safe."""

    @pytest.mark.parametrize(
        "target",
        [
            "127.0.0.1:50051",
            "127.8.9.10:1",
            "localhost:50051",
            "LOCALHOST",
            "[::1]:50051",
            "::1",
            "dns:localhost:1",
            "dns:///localhost:1",
            "ipv4:127.0.0.1:1,127.0.0.2:1",
            "ipv6:[::1]:1",
            "unix:/run/tumbler.sock",
            "unix-abstract:tumbler",
        ],
    )
    def test_loopback(self, target):
        """These targets can only be this machine."""
        assert is_loopback(target)

    @pytest.mark.parametrize(
        "target",
        [
            "",
            ":50051",
            "0.0.0.0:50051",
            "[::]:50051",
            "192.0.2.1:50051",
            "127.0.0.1.example:1",
            "localhost.example:1",
            "localhost@example:1",
            "dns://192.0.2.1/localhost:1",
            "ipv4:127.0.0.1:1,192.0.2.1:1",
            "ipv6:[2001:db8::1]:1",
            "xds:///localhost",
        ],
    )
    def test_elsewhere(self, target):
        """These targets may be another machine."""
        assert not is_loopback(target)


class TestConnection:
    """The options that all commands share."""

    def test_before_and_after(self, run, monkeypatch, served):
        """The endpoint after the subcommand overrides the one before it, and both override the environment."""
        here = f"127.0.0.1:{served[1]}"
        monkeypatch.setenv("TUMBLER_ENDPOINT", "127.0.0.1:1")
        assert run("--endpoint", here, "keys", "list")[0] == 0
        assert run("--endpoint", "127.0.0.1:1", "keys", "list", "--endpoint", here)[0] == 0
        assert run("keys", "list")[0] == 3

    def test_json_before(self, run):
        """--json may also stand before the subcommand."""
        assert json.loads(run("--json", "keys", "list")[1])["api_keys"] == []

    def test_timeout(self, run, recorder, monkeypatch):
        """The default deadline is 10 s; the environment overrides it, and --timeout overrides both."""
        run("keys", "list")
        monkeypatch.setenv("TUMBLER_TIMEOUT", "5m")
        run("keys", "list")
        run("keys", "list", "--timeout", "15m")  # gRPC rounds longer deadlines up, to three digits
        assert [round(deadline, -1) for deadline in recorder.deadlines] == [10, 300, 900]

    def test_bad_timeout_in_the_environment(self, run, monkeypatch):
        """A bad duration in the environment is misuse, and the message names the variable."""
        monkeypatch.setenv("TUMBLER_TIMEOUT", "soon")
        code, _, err = run("keys", "list")
        assert code == 2
        assert "TUMBLER_TIMEOUT" in err

    def test_key_file(self, run, recorder, monkeypatch, tmp_path):
        """A calling key from a file or stdin overrides the environment, and its line end is stripped."""
        monkeypatch.setenv("TUMBLER_API_KEY", "of-the-environment")
        path = tmp_path / "key"
        path.write_text(CALLER + "\r\n")
        run("keys", "list", "--api-key-file", str(path))
        assert recorder.metadata["authorization"] == f"Bearer {CALLER}"
        monkeypatch.setattr(sys, "stdin", Stdin("from-stdin\n"))
        run("keys", "list", "--api-key-file", "-")
        assert recorder.metadata["authorization"] == "Bearer from-stdin"

    @pytest.mark.parametrize("flag", ["--tls", "TUMBLER_TLS"])
    def test_tls_that_the_server_does_not_speak(self, run, recorder, monkeypatch, flag):
        """If TLS is requested and the server speaks plaintext, nothing is sent and the server counts as unreachable."""
        if flag == "TUMBLER_TLS":
            monkeypatch.setenv(flag, "1")
        code, _, err = run("keys", "list", *([flag] if flag == "--tls" else []))
        assert (code, recorder.requests) == (3, [])
        assert "UNAVAILABLE" in err

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")
    def test_mutual_tls(self, run, tmp_path):
        """A server that requires a client certificate answers if the command has the CA and a certificate."""
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        subprocess.run(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
            f"-addext subjectAltName=IP:127.0.0.1 -out {certificate} -keyout {key}".split(),
            check=True,
            capture_output=True,
        )
        pair = (key.read_bytes(), certificate.read_bytes())
        credentials = grpc.ssl_server_credentials([pair], certificate.read_bytes(), require_client_auth=True)
        server, _, port = cli_server.start(credentials)
        try:
            options = ["--endpoint", f"127.0.0.1:{port}", "--tls-ca", str(certificate)]
            assert run("keys", "list", *options)[0] == 3
            assert run("keys", "list", *options, "--tls-cert", str(certificate), "--tls-key", str(key))[0] == 0
        finally:
            server.stop(None).wait()

    def test_version(self, run):
        """--version prints the package's version."""
        assert run("--version") == (0, f"tumbler {tumbler.__version__}\n", "")


class TestOutput:
    """What people and programs read."""

    def test_create(self, run, recorder):
        """By default stdout has only the key; the warning and the record go to stderr."""
        recorder.answers["Create"] = [pb.CreateResponse(api_key=API_KEY, key="the-key")]
        code, out, err = run("keys", "create", "--project", "acme")
        assert (code, out) == (0, "the-key\n")
        assert "not shown again" in err
        assert "orders:write" in err

    def test_create_json(self, run, recorder):
        """With --json stdout is one JSON object with the proto's names."""
        recorder.answers["Create"] = [pb.CreateResponse(api_key=API_KEY, key=KEY, consistency_token="t")]
        code, out, err = run("keys", "create", "--project", "acme", "--json")
        answer = json.loads(out)
        assert (code, err) == (0, "")
        assert (answer["key"], answer["api_key"]["key_prefix"]) == (KEY, f"acme_live_{KEY_ID}_")
        assert (answer["consistency_token"], answer["secret_omitted"]) == ("t", False)

    def test_create_repeated(self, run, recorder):
        """If the secret is omitted because the request is a replay, stdout is empty and stderr names the remedy."""
        recorder.answers["Create"] = [pb.CreateResponse(api_key=API_KEY, secret_omitted=True)]
        code, out, err = run("keys", "create", "--project", "acme")
        assert (code, out) == (0, "")
        assert f"tumbler keys rotate {KEY_ID}" in err

    def test_validate_only(self, run, recorder):
        """With --validate-only stderr says that no key was created."""
        recorder.answers["Create"] = [pb.CreateResponse(api_key=api_key_pb2.ApiKey(name="ci", project_id="acme"))]
        code, out, err = run("keys", "create", "--project", "acme", "--validate-only")
        assert (code, out) == (0, "")
        assert "no key was created" in err

    def test_rotate(self, run, recorder):
        """The new key is alone on stdout; stderr says until when the old one works."""
        old = api_key_pb2.ApiKey(key_prefix="old_", grace_expire_time=YEAR_2027)
        recorder.answers["Rotate"] = [pb.RotateResponse(api_key=API_KEY, old_api_key=old, key="the-key")]
        code, out, err = run("keys", "rotate", KEY_ID)
        assert (code, out) == (0, "the-key\n")
        assert "The old key, old_, works until 2027-01-01 00:00:00Z." in err

    def test_rotate_ends_on_first_use(self, run, recorder):
        """If the old key ends on the new key's first use, stderr and its record say so, with the latest time."""
        old = api_key_pb2.ApiKey(
            id=KEY_ID, key_prefix="old_", grace_expire_time=YEAR_2027, grace_ends_on_first_use=True
        )
        recorder.answers["Rotate"] = [pb.RotateResponse(api_key=API_KEY, old_api_key=old, key="the-key")]
        err = " ".join(run("keys", "rotate", KEY_ID)[2].split())
        assert "The old key, old_, works until the new one is first used, at the latest 2027-01-01 00:00:00Z." in err
        recorder.answers["Get"] = [pb.GetResponse(api_key=old)]
        out = " ".join(run("keys", "get", KEY_ID)[1].split())
        assert "works until the new key is first used, at the latest 2027-01-01 00:00:00Z" in out

    def test_rotate_json(self, run, recorder):
        """With --json a rotation is one JSON object with the new key, its record and the old key's."""
        recorder.answers["Rotate"] = [pb.RotateResponse(api_key=API_KEY, old_api_key=API_KEY, key=KEY)]
        code, out, err = run("keys", "rotate", KEY_ID, "--json")
        answer = json.loads(out)
        assert (code, err, answer["key"]) == (0, "", KEY)
        assert answer["api_key"] == answer["old_api_key"]

    def test_record(self, run, recorder):
        """The record shows the fields that have a value, and omits the others."""
        recorder.answers["Get"] = [pb.GetResponse(api_key=API_KEY)]
        out = run("keys", "get", KEY_ID)[1]
        rows = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines() if line[0] != " ")
        assert rows["name"] == "ci"
        assert rows["state"] == "active"
        assert rows["metadata"] == "team=blue"
        assert rows["created by"] == f"operator {'C' * 16}"
        assert rows["expires"] == "2027-01-01 00:00:00Z"
        assert rows["last used"] == "never"
        assert (rows["rotate every"], rows["rotate next"]) == ("90d", "2027-01-01 00:00:00Z")
        assert rows["webhook"] == "https://hooks.example/tumbler"
        assert not {"revoked", "replaces", "networks"} & set(rows)

    def test_table(self, run, recorder):
        """A list has one line per key, not truncated, and says how to get the next page."""
        recorder.answers["List"] = [pb.ListResponse(api_keys=[API_KEY] * 3, next_page_token="p2", total_size=7)]
        lines = run("keys", "list")[1].splitlines()
        assert re.split(r"\s{2,}", lines[0].strip()) == [
            *("KEY", "NAME", "PROJECT", "ENVIRONMENT", "OWNER", "STATE", "SCOPES", "EXPIRES", "LAST USED")
        ]
        cells = [API_KEY.key_prefix, "ci", "acme", "live", "alice", "active", "orders:read orders:write"]
        assert re.split(r"\s{2,}", lines[1].strip()) == [*cells, "2027-01-01 00:00:00Z", "never"]
        assert lines[4:] == ["7 in total.", "More: --page-token p2, or --all."]

    @pytest.mark.parametrize("columns", ["60", "80", "200"])
    def test_table_on_a_terminal(self, run, recorder, monkeypatch, columns):
        """On a terminal of any width the key prefix is complete, and the state has a colour."""
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
        recorder.answers["List"] = [pb.ListResponse(api_keys=[API_KEY])]
        out = run("keys", "list")[1]
        assert API_KEY.key_prefix in out
        assert "\x1b[32ma" in out

    def test_wide_characters(self, run, recorder):
        """Columns stay aligned if characters are two cells wide."""
        two = [api_key_pb2.ApiKey(key_prefix="tmb_", name=name, project_id="acme") for name in ("鍵鍵", "keys")]
        recorder.answers["List"] = [pb.ListResponse(api_keys=two)]
        _, wide, narrow = run("keys", "list")[1].splitlines()
        assert wide.index("acme") + 2 == narrow.index("acme")

    def test_empty_table(self, run):
        """An empty list says that there are no keys."""
        assert run("keys", "list") == (0, "No keys.\n", "")

    def test_list_json(self, run):
        """A list's JSON always has its three fields."""
        assert json.loads(run("keys", "list", "--json")[1]) == {
            "api_keys": [],
            "next_page_token": "",
            "total_size": 0,
        }

    @pytest.mark.parametrize("command", ["list", f"get {KEY_ID}"])
    def test_terminal_escapes(self, run, recorder, command):
        """Rich markup is shown as text, and control characters in a name are escaped."""
        api_key = api_key_pb2.ApiKey(
            id=KEY_ID, key_prefix="tmb_", name="[red]a\x1b[31mb\u202ec\x9bd[/red]", scopes=["x\ny"]
        )
        recorder.answers = {
            "List": [pb.ListResponse(api_keys=[api_key])],
            "Get": [pb.GetResponse(api_key=api_key)],
        }
        out = run("keys", *command.split())[1]
        assert r"[red]a\x1b[31mb\u202ec\x9bd[/red]" in out
        assert r"x\ny" in out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)

    def test_json_on_a_terminal(self, run, recorder):
        """JSON output contains no raw control characters."""
        recorder.answers["Get"] = [pb.GetResponse(api_key=api_key_pb2.ApiKey(name="a\x1b\x9b\u202e"))]
        out = run("keys", "get", KEY_ID, "--json")[1]
        assert json.loads(out)["api_key"]["name"] == "a\x1b\x9b\u202e"
        assert out.isascii()
        assert "\x1b" not in out

    @pytest.mark.parametrize(
        "line",
        [
            "keys",
            *(
                f"keys {c}"
                for c in ["create", "get", "list", "update", "activate", "deactivate", "revoke", "rotate", "verify"]
            ),
            "",
        ],
    )
    def test_help(self, run, line):
        """Every command's help describes the shared options and has an example."""
        code, out, _ = run(*line.split(), "--help")
        assert code == 0
        if line != "keys":
            assert "Example:" in out
            assert "--endpoint" in out
            assert "--json" in out

    def test_no_flag_takes_the_calling_key(self, run):
        """No option takes the calling key as its value, because other users can see arguments."""
        for command in ("list", "verify"):
            assert not re.search(r"--api-key\s", run("keys", command, "--help")[1])


class TestVerify:
    """The verdict, and where the key comes from."""

    def test_valid(self, run, recorder):
        """A valid key exits with 0, and the output shows what it grants."""
        recorder.answers["Verify"] = [
            pb.VerifyResponse(valid=True, code="VERIFY_CODE_VALID", key_id=KEY_ID, scopes=["a:b"], owner_id="alice")
        ]
        code, out, _ = run("keys", "verify", KEY)
        assert code == 0
        assert out.splitlines()[0] == "VALID"
        assert "a:b" in out
        assert "k" * 43 not in out

    @pytest.mark.parametrize("name", [name for name, _ in pb.VerifyCode.items() if name != "VERIFY_CODE_VALID"])
    def test_not_valid(self, run, recorder, name):
        """Every other code exits with 1, also with --json."""
        recorder.answers["Verify"] = [pb.VerifyResponse(code=name)]
        code, out, err = run("keys", "verify", KEY)
        assert (code, out, err) == (1, f"not valid: {name.removeprefix('VERIFY_CODE_')}\n", "")
        code, out, err = run("keys", "verify", KEY, "--json")
        assert (code, json.loads(out)["code"], json.loads(out)["valid"], err) == (1, name, False, "")

    def test_only_valid_counts(self, run):
        """Only `valid` decides about exit code 0, and it is false by default."""
        assert run("keys", "verify", KEY)[0] == 1

    @pytest.mark.parametrize("arguments", [[], ["-"], ["--key-file", "-"]])
    def test_stdin(self, run, recorder, monkeypatch, arguments):
        """Without an argument, or with -, the key is read from stdin and its line end is stripped."""
        monkeypatch.setattr(sys, "stdin", Stdin(KEY + "\n"))
        run("keys", "verify", *arguments)
        assert recorder.requests[-1].key == KEY

    def test_file(self, run, recorder, tmp_path):
        """The key can come from a file; bytes that are not UTF-8 make an invalid key, not a traceback."""
        path = tmp_path / "key"
        path.write_bytes(KEY.encode() + b"\n")
        run("keys", "verify", "--key-file", str(path))
        assert recorder.requests[-1].key == KEY
        path.write_bytes(b"\xff\xfe")
        assert run("keys", "verify", "--key-file", str(path))[0] == 1
        assert recorder.requests[-1].key == "\ufffd\ufffd"

    def test_prompt(self, run, recorder, monkeypatch):
        """On a terminal the command prompts for the key and does not echo it."""
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("getpass.getpass", lambda _: KEY + "\n")
        _, out, err = run("keys", "verify")
        assert recorder.requests[-1].key == KEY
        assert KEY not in out + err


class TestRevoke:
    """The question before a key is revoked."""

    @pytest.mark.parametrize(
        ("arguments", "answer", "code", "calls"),
        [([], False, 1, 0), ([], True, 0, 1), (["--yes"], None, 0, 1), (["-y"], None, 0, 1)],
    )
    def test_question(self, run, recorder, monkeypatch, arguments, answer, code, calls):
        """On a terminal the command asks unless --yes was given, and the answer no changes nothing."""
        asked = []
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("typer.confirm", lambda text, **_: asked.append(text) or answer)
        assert run("keys", "revoke", KEY_ID, *arguments)[0] == code
        revoked = [request for request in recorder.requests if isinstance(request, pb.RevokeRequest)]
        assert (len(asked), len(revoked)) == (0 if answer is None else 1, calls)


ERRORS = [
    (
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "2 fields are not valid",
            ErrorInfo(reason="INVALID_FIELD", domain="tumbler.dev"),
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(field="scopes[1]", description="1-128 characters"),
                    BadRequest.FieldViolation(field="name", description="3-255 characters"),
                ]
            ),
        ),
        1,
        [
            "INVALID_ARGUMENT, INVALID_FIELD: 2 fields are not valid",
            "  scopes[1]: 1-128 characters",
            "  name: 3-255 characters",
        ],
    ),
    (
        (grpc.StatusCode.UNAUTHENTICATED, "no key", ErrorInfo(reason="UNAUTHENTICATED", domain="tumbler.dev")),
        1,
        ["UNAUTHENTICATED: no key", "Set TUMBLER_API_KEY, or --api-key-file, to an active key of this server."],
    ),
    (
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "missing scope",
            ErrorInfo(reason="SCOPE_MISSING", metadata={"scope": "tumbler:keys:read"}),
        ),
        1,
        [
            "PERMISSION_DENIED, SCOPE_MISSING: missing scope",
            "  scope: tumbler:keys:read",
            "Call with a key that carries the scope tumbler:keys:read.",
        ],
    ),
    (
        (grpc.StatusCode.PERMISSION_DENIED, "missing scope", ErrorInfo(reason="SCOPE_MISSING")),
        1,
        ["PERMISSION_DENIED, SCOPE_MISSING: missing scope", "Call with a key that carries the scope it needs."],
    ),
    ((grpc.StatusCode.NOT_FOUND, "no such key"), 1, ["NOT_FOUND: no such key"]),
    ((grpc.StatusCode.INTERNAL, ""), 1, ["INTERNAL"]),
    (
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "busy",
            ErrorInfo(reason="OVERLOADED"),
            RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
        ),
        1,
        ["RESOURCE_EXHAUSTED, OVERLOADED: busy", "  Try again in 1.5 s."],
    ),
    (
        (grpc.StatusCode.UNAVAILABLE, "no database", ErrorInfo(reason="STORE_UNAVAILABLE")),
        3,
        [
            "UNAVAILABLE, STORE_UNAVAILABLE: no database",
            "The server runs, but its database fails. The server's log has the details.",
        ],
    ),
    ((grpc.StatusCode.NOT_FOUND, "a\x1b[31mb", ErrorInfo()), 1, [r"NOT_FOUND: a\x1b[31mb"]),
    ((grpc.StatusCode.NOT_FOUND, f"no {KEY}"), 1, ["NOT_FOUND: no ***"]),
]


class TestErrors:
    """Failed calls exit with 1 or 3."""

    @pytest.mark.parametrize(("error", "code", "lines"), ERRORS, ids=lambda value: str(value)[:40])
    def test_for_people(self, run, recorder, error, code, lines):
        """People see the message, the reason, each bad field, the retry delay, and a hint."""
        recorder.error = error
        assert run("keys", "list") == (code, "", "\n".join(lines) + "\n")

    def test_for_programs(self, run, recorder):
        """With --json stderr has the same as JSON."""
        recorder.error = ERRORS[0][0]
        code, out, err = run("keys", "list", "--json")
        assert (code, out) == (1, "")
        assert json.loads(err) == {
            "error": {
                "code": "INVALID_ARGUMENT",
                "reason": "INVALID_FIELD",
                "message": "2 fields are not valid",
                "metadata": {},
                "field_violations": [
                    {"field": "scopes[1]", "description": "1-128 characters"},
                    {"field": "name", "description": "3-255 characters"},
                ],
                "retry_seconds": None,
                "hint": "",
            }
        }

    def test_mistyped_calling_key(self, run, recorder, monkeypatch):
        """If the refused calling key is malformed, the message says so and does not show it."""
        monkeypatch.setenv("TUMBLER_API_KEY", CALLER[:-3])
        recorder.error = ERRORS[1][0]
        code, _, err = run("keys", "list")
        assert code == 1
        assert "mistyped or truncated" in err

    def test_details_that_cannot_be_read(self, run, recorder, monkeypatch):
        """Error details that cannot be parsed are ignored."""
        monkeypatch.setattr(cli_server.status_pb2.Status, "SerializeToString", lambda _: b"\xff")
        recorder.error = (grpc.StatusCode.NOT_FOUND, "no such key")
        assert run("keys", "list") == (1, "", "NOT_FOUND: no such key\n")

    def test_unreachable(self, run):
        """If nothing listens, the exit code is 3, and the message names the endpoint and the variable to set."""
        code, out, err = run("keys", "list", "--endpoint", "127.0.0.1:1")
        assert (code, out) == (3, "")
        assert "listening at 127.0.0.1:1?" in err
        assert "TUMBLER_ENDPOINT" in err

    def test_too_slow(self, run, recorder):
        """A timeout exits with 3, and the message warns that the change may have been made."""
        recorder.held = Event()
        code, _, err = run("keys", "rotate", KEY_ID, "--timeout", "200ms")
        assert code == 3
        assert "--timeout" in err
        assert "may have been made" in err


class TestProcess:
    """What only a separate process can show."""

    def test_interrupted(self, process, recorder):
        """Ctrl-C ends a pending call with exit code 130 and no output."""
        recorder.held = Event()
        child = process("keys", "list")
        assert recorder.held.wait(30)
        child.send_signal(signal.SIGINT)
        assert (child.wait(30), child.stderr.read()) == (130, b"")

    @pytest.mark.parametrize("arguments", [[], ["--json"]])
    def test_reader_went_away(self, process, recorder, arguments):
        """If the reader closes the pipe early, as head does, the command exits with 141 and no message."""
        many = [api_key_pb2.ApiKey(key_prefix="tmb_", name="n" * 250)] * 8000  # more than any pipe holds
        recorder.answers["List"] = [pb.ListResponse(api_keys=many)]
        child = process("keys", "list", *arguments, stdout=subprocess.PIPE)
        child.stdout.read(10)
        child.stdout.close()
        assert (child.wait(30), child.stderr.read()) == (141, b"")

    def test_prompt_on_a_terminal(self, process, recorder):
        """A key typed at a real terminal's prompt is not echoed."""
        ours, its = os.openpty()
        process("keys", "verify", stdin=its, stdout=its, stderr=its, start_new_session=True)
        os.close(its)
        shown = b""
        while b"Key: " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, KEY.encode() + b"\n")
        while b"not valid" not in shown:
            shown += os.read(ours, 1000)
        os.close(ours)
        assert recorder.requests[-1].key == KEY
        assert b"kkk" not in shown

    def test_encoding_of_the_terminal(self, process, recorder, monkeypatch):
        """A character that the terminal's encoding lacks is escaped, and causes no traceback."""
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        recorder.answers["Get"] = [pb.GetResponse(api_key=api_key_pb2.ApiKey(name="Zoë"))]
        child = process("keys", "get", KEY_ID, stdout=subprocess.PIPE)
        out, err = child.communicate(timeout=30)
        assert (child.returncode, err) == (0, b"")
        assert rb"Zo\xeb" in out

    @pytest.mark.parametrize("name", ["google.rpc", "rich", "typer"])
    def test_without_the_extra(self, process, name):
        """Without the extra's packages the command prints one line that says what to install."""
        child = process("keys", "list", before=f"sys.modules[{name!r}] = None")
        assert child.wait(30) == 2
        assert (
            child.stderr.read().decode()
            == "tumbler: the command is not fully installed; run: pip install 'tumbler[cli]'\n"
        )

    def test_the_rest_needs_no_extra(self, process):
        """The package and its key format check import neither the extra's packages nor gRPC."""
        look = "import tumbler.keyformat; print(*{'rich', 'typer', 'grpc'} & set(sys.modules)); sys.exit()"
        child = process(before=look, stdout=subprocess.PIPE)
        out, err = child.communicate(timeout=30)
        assert (out.strip(), err) == (b"", b"")
