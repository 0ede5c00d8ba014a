"""No secret is ever written down: not in the log, in output, in the database or in a webhook."""

import base64
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from google.protobuf.message import Message
from psycopg import sql

from tests.e2e.service import Service, eventually, seconds
from tests.harness import Refused
from tests.histories.scene import Postgresql, memory
from tests.rotations.receiver import Posted, Receiver
from tests.webhooks.receiver import OPTIONS
from tumbler.v1 import api_key_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.secrets import pepper


def everything_at_rest(service: Service) -> bytes:
    """Return everything that the database holds: its files, or a dump of all its tables."""
    if service.database_url.startswith("postgresql"):
        with psycopg.connect(service.database_url) as connection:
            tables = connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
            ).fetchall()
            whole = sql.SQL("SELECT t::text FROM {} t")
            rows = [connection.execute(whole.format(sql.Identifier(table))).fetchall() for (table,) in tables]
        return repr(rows).encode()
    files = list(service.data_dir.glob("tumbler.db*"))
    assert len(files) >= 2, "the write-ahead log is looked at, too"
    return b"".join(path.read_bytes() for path in files)


def use_everything(service: Service) -> list[str]:
    """Call every RPC, rightly and wrongly, with keys in wrong fields. Return every key that was created."""
    request_id = str(uuid4())
    first = service.create(name="first", request_id=request_id, scopes=["orders:*"])
    service.call(
        "Create", pb.CreateRequest(project_id="acme", name="first", request_id=request_id, scopes=["orders:*"])
    )
    second = service.rotate(first.api_key.id)
    caller = service.caller("tumbler:keys:verify", "tumbler:keys:read")
    keys = [service.key, first.key, second.key, caller.key]
    service.set_active(second.api_key.id, active=False)
    for key in keys:
        service.verify(key)
        caller.verify(key[:-1] + ("0" if key[-1] != "0" else "1"))
        caller.verify(key, required_scopes=["orders:read"])
    mistaken: list[tuple[str, Message]] = []
    for key in keys:
        mistaken += [
            ("Get", pb.GetRequest(key_id=key)),
            ("Revoke", pb.RevokeRequest(key_id=key)),
            ("Rotate", pb.RotateRequest(key_id=key)),
            ("SetActive", pb.SetActiveRequest(key_id=key)),
            ("Update", pb.UpdateRequest(api_key=api_key_pb2.ApiKey(id=key, name="name"))),
            ("Update", pb.UpdateRequest(api_key=api_key_pb2.ApiKey(id=first.api_key.id), update_mask={"paths": [key]})),
            ("List", pb.ListRequest(order_by=key)),
            ("List", pb.ListRequest(page_token=key)),
            ("Create", pb.CreateRequest(project_id="acme", request_id=key)),
            ("Create", pb.CreateRequest(project_id="acme", allowed_cidrs=[key])),
            ("Create", pb.CreateRequest(project_id="acme", prefix=key)),
            ("Verify", pb.VerifyRequest(key=key, client_ip=key)),
            ("Verify", pb.VerifyRequest(key=key, consistency={"at_least_as_fresh": key})),
            ("Create", pb.CreateRequest(project_id="acme", name="x" * 255 + key)),
            ("ListEvents", pb.ListEventsRequest(page_token=key)),
            ("ClaimRotation", pb.ClaimRotationRequest(claim_token=key)),
        ]
    for method, request in mistaken:
        try:
            service.call(method, request)
        except Refused as refused:
            said = f"{refused.message} {refused.status}"
            assert not [key for key in keys if key.rpartition("_")[2] in said]
            continue
        raise AssertionError(f"{method} was not refused: {request}")
    for header in ("authorization", "x-api-key"):
        client = service.connect("")
        client.metadata = ((header, f"Bearer {first.key}"),)
        with suppress(Refused):
            client.get(first.api_key.id)
    service.call("List", pb.ListRequest(show_total_size=True))
    service.revoke(first.api_key.id, reason=api_key_pb2.REVOKE_REASON_COMPROMISED)
    return keys


def test_no_secret_is_written_down(installed: Service) -> None:
    """After all RPCs, right and wrong, no key and no pepper is in the log, on stdout or in the database."""
    installed.start("--log-level", "debug", "--log-format", "json")
    keys = use_everything(installed)
    installed.tamper("ALTER TABLE event RENAME COLUMN detail TO elsewhere")  # so that a fault is logged as well
    for key in keys:
        with suppress(Refused):
            installed.create(name="never made", metadata={"pasted": key})
    at_rest = everything_at_rest(installed)
    installed.stop()
    assert "a call failed" in installed.stderr
    newest = installed.pepper_file.read_text().split()[-1]
    secrets = [key.rpartition("_")[2][:-6] for key in keys] + [newest]
    assert all(len(secret) >= 43 for secret in secrets)
    for secret in secrets:
        assert secret not in installed.stderr + installed.stdout
        assert secret.encode() not in at_rest
    # Public parts are found, which shows that the search works.
    assert keys[1].split("_")[1].encode() in at_rest


DUE = "key.rotation_due"


@dataclass(frozen=True)
class Place:
    """An installation, and a way to read every file that it leaves."""

    service: Service
    folder: Path
    settle: Callable[[], object]

    def files(self) -> dict[str, bytes]:
        """Return the content of every file by name, except the pepper file, after the database has written to disk."""
        self.settle()
        found = {}
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and path != self.service.pepper_file:
                    found[str(path.relative_to(self.folder))] = path.read_bytes()
        return found


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Return an installation on each database, in a folder of its own."""
    options = (*OPTIONS, "--scheduler-lease", "1s", "--log-level", "debug", "--log-format", "json")
    with memory() as folder:
        if request.param == "sqlite":
            service = Service(folder / "data", "", options).init()
            yield Place(service, folder, lambda: None)
            service.close()
            return
        postgresql = Postgresql(folder / "postgresql")
        try:
            service = Service(folder / "data", postgresql.new_database("secrecy"), options).init()
            yield Place(service, folder, lambda: postgresql.run("CHECKPOINT"))
            service.close()
        finally:
            postgresql.close()


@dataclass
class Life:
    """What an installation's life produced, and what it sent to the outside. Its repr shows no secret."""

    keys: list[str] = field(default_factory=list, repr=False)
    webhook_secrets: list[str] = field(default_factory=list, repr=False)
    answers: list[str] = field(default_factory=list, repr=False)
    """The responses of refused calls, and of RPCs that return stored data."""
    posted: list[Posted] = field(default_factory=list)
    status: int = 204
    """The receiver's HTTP status. Its response echoes the request."""

    @property
    def tokens(self) -> list[str]:
        """Return the claim tokens that were sent, each once."""
        return list(dict.fromkeys(posted.data["claim_token"] for posted in self.posted if posted.type == DUE))

    def take(self, posted: Posted) -> int:
        """Receive a webhook."""
        self.posted.append(posted)
        return self.status

    def told(self, kind: str, key_id: str, times: int = 1) -> list[Posted]:
        """Wait until a key has had ``times`` webhooks of a type, and return them all."""

        def so_far() -> list[Posted]:
            came = [posted for posted in self.posted if (posted.type, posted.data["key_id"]) == (kind, key_id)]
            return came if len(came) >= times else []

        return eventually(so_far)

    def token(self, key_id: str, times: int = 1) -> str:
        """Return the latest claim token of a key after ``times`` announcements."""
        return str(self.told(DUE, key_id, times)[-1].data["claim_token"])

    def refused(self, service: Service, method: str, request: Message) -> None:
        """Make a call that must be refused, and keep the response."""
        try:
            service.call(method, request)
        except Refused as refused:
            self.answers.append(f"{refused.message} {refused.status}")
            return
        raise AssertionError(f"{method} was not refused")


def live(service: Service, receiver: Receiver, life: Life) -> None:
    """Run rotations and provoke their failures, on a running server."""
    url, other_url = receiver.url("/one"), receiver.url("/two")

    def claim(token: str) -> api_key_pb2.ApiKey:
        claimed = service.call("ClaimRotation", pb.ClaimRotationRequest(claim_token=token))
        life.keys.append(claimed.key)
        return claimed.api_key

    life.status = 500  # the failed response echoes the request
    created = service.create(name="rotated", rotation={"interval": seconds(1), "webhook_url": url})
    life.keys.append(created.key)
    life.webhook_secrets.append(created.webhook_secret)
    first_id = created.api_key.id
    token = life.token(first_id)
    failed = eventually(lambda: service.read("SELECT id FROM webhook_delivery WHERE attempts > 0"))
    life.status = 204
    service.call("Redeliver", pb.RedeliverRequest(delivery_id=failed[0][0]))
    again = life.token(first_id, times=2) == token
    assert again
    for wrong in (token[:-1], f"{token}0", f"{token}.{created.key}", token.replace("claim_", ""), created.key):
        life.refused(service, "ClaimRotation", pb.ClaimRotationRequest(claim_token=wrong))
    second = claim(token)
    life.refused(service, "ClaimRotation", pb.ClaimRotationRequest(claim_token=token))
    life.told("key.rotated", first_id)

    replacing = pb.RotateWebhookSecretRequest(project_id="acme", webhook_url=url)
    life.webhook_secrets.append(service.call("RotateWebhookSecret", replacing).webhook_secret)
    third = claim(life.token(second.id))  # signed with both secrets, or soon will be
    changed = api_key_pb2.ApiKey(id=third.id, rotation={"interval": seconds(1), "webhook_url": other_url})
    life.webhook_secrets.append(service.call("Update", pb.UpdateRequest(api_key=changed)).webhook_secret)
    rotated = service.rotate(third.id)
    life.keys.append(rotated.key)
    fourth_id = rotated.api_key.id
    outdated = life.token(fourth_id)
    service.set_active(fourth_id, active=False)
    life.told("key.deactivated", fourth_id)
    life.refused(service, "ClaimRotation", pb.ClaimRotationRequest(claim_token=outdated))
    service.set_active(fourth_id, active=True)
    fifth = claim(life.token(fourth_id, times=2))
    service.revoke(second.id, comment="lost")
    life.told("key.revoked", second.id)
    service.verify(created.key)

    renewed = service.run("pepper", "rotate", "--data-dir", str(service.data_dir))
    assert renewed.returncode == 0, renewed.stderr
    service.restart()  # and secrets under the older pepper are resealed
    newest = pepper.load(service.pepper_file)[0].id
    unsealed = "SELECT COUNT(*) FROM webhook_endpoint WHERE pepper_id <> ?"
    eventually(lambda: service.read(unsealed, newest) == [(0,)])
    still_due = life.token(fifth.id)
    paste(service, life, fifth.id)
    service.tamper("ALTER TABLE event RENAME COLUMN detail TO elsewhere")  # so that faults are logged as well
    life.refused(service, "ClaimRotation", pb.ClaimRotationRequest(claim_token=still_due))
    life.refused(
        service,
        "Create",
        pb.CreateRequest(project_id="acme", rotation={"interval": seconds(1), "webhook_url": receiver.url("/never")}),
    )
    service.tamper("ALTER TABLE event RENAME COLUMN elsewhere TO detail")
    life.keys.append(service.key)
    for request in (pb.ListDeliveriesRequest(page_size=1_000), pb.ListEventsRequest(page_size=1_000), pb.ListRequest()):
        life.answers.append(str(service.call(type(request).__name__.removesuffix("Request"), request)))


def paste(service: Service, life: Life, key_id: str) -> None:
    """Send secrets in fields where none belongs."""
    for text in (*life.keys, *life.webhook_secrets, *life.tokens):
        for url in (
            f"https://ada:{text}@hooks.example.com/",
            f"http://hooks.example.com/{text}",
            f"https://10.0.0.1/?key={text}",
            f"https://169.254.169.254/{text}",
            f"https://hooks.example.com:99999/{text}",
            f"https://hooks.example.com/#{text}",
            text,
        ):
            rotation = {"interval": seconds(3_600), "webhook_url": url}
            life.refused(service, "Create", pb.CreateRequest(project_id="acme", rotation=rotation))
            changed = api_key_pb2.ApiKey(id=key_id, rotation=rotation)
            life.refused(service, "Update", pb.UpdateRequest(api_key=changed))
        life.refused(service, "RotateWebhookSecret", pb.RotateWebhookSecretRequest(webhook_url=text))
        life.refused(service, "Redeliver", pb.RedeliverRequest(delivery_id=text))
        life.refused(service, "ListDeliveries", pb.ListDeliveriesRequest(page_token=text))


def halves(name: str, *secrets: str | bytes) -> dict[str, bytes]:
    """Return what to search for: both halves of each form of a secret, so that a part of it is found as well."""
    found = {}
    for number, secret in enumerate(secrets):
        form = secret.encode() if isinstance(secret, str) else secret
        if len(form) < 32:
            raise AssertionError(f"form {number} of {name} is too short to be looked for")
        middle = len(form) // 2
        found |= {f"{name}, form {number}, first half": form[:middle], f"{name}, form {number}, rest": form[middle:]}
    return found


def never_written(place: Place, life: Life) -> dict[str, bytes]:
    """Return the patterns that must not occur anywhere, by name."""
    parts: dict[str, bytes] = {}
    for number, key in enumerate(life.keys):
        parts |= halves(f"key {number}", key.rpartition("_")[2][:-6])
    for number, secret in enumerate(life.webhook_secrets):
        text = secret.removeprefix("whsec_")
        parts |= halves(f"webhook secret {number}", text, base64.b64decode(text), base64.b64decode(text).hex())
    for number, each in enumerate(pepper.load(place.service.pepper_file)):
        text = base64.urlsafe_b64encode(each.secret).decode().rstrip("=")
        parts |= halves(f"pepper {number}", text, each.secret, each.secret.hex())
    return parts


def found(parts: Mapping[str, bytes], places: Mapping[str, bytes]) -> list[str]:
    """Return which pattern occurs where, without quoting it."""
    return [
        f"{part} in {where}" for where, content in places.items() for part, form in parts.items() if form in content
    ]


def test_no_secret_of_a_rotation_is_written_down(place: Place) -> None:
    """After rotations, claims and errors, no secret is in any file, webhook or response, except tokens in bodies."""
    life = Life()
    with Receiver(life.take, echo=True) as receiver:
        live(place.service.start(), receiver, life)
        files = place.files()  # while the server runs
        place.service.signal(signal.SIGTERM)
        assert place.service.wait() == 0
        files |= {f"{name}, afterwards": content for name, content in place.files().items()}
    # Compare only named values: if an assertion contains a call, its failure shows the arguments.
    counted = (len(life.keys), len(set(life.webhook_secrets)), len(set(life.tokens)) >= 5)
    assert counted == (6, 3, True)

    bodies = {f"body {number}": posted.body for number, posted in enumerate(life.posted)}
    headers = {f"headers {number}": repr(posted.headers).encode() for number, posted in enumerate(life.posted)}
    answers = {f"answer {number}": text.encode() for number, text in enumerate(life.answers)}
    everywhere = {**files, **bodies, **headers, **answers}
    secrets = never_written(place, life)
    leaks = found(secrets, everywhere)
    assert leaks == []

    tokens: dict[str, bytes] = {}
    for number, token in enumerate(life.tokens):
        tokens |= halves(f"claim token {number}", token.rpartition(".")[2])
    announcing = {f"body {number}" for number, posted in enumerate(life.posted) if posted.type == DUE}
    assert announcing < set(bodies)
    leaks = found(tokens, {name: content for name, content in everywhere.items() if name not in announcing})
    assert leaks == []

    # Public parts and planted secrets are found, which shows that the search covers every place.
    seen = found(tokens, bodies)
    assert {each.rpartition(" in ")[2] for each in seen} == announcing
    faults = [name for name, content in files.items() if name.endswith("stderr") and b"a call failed" in content]
    assert faults
    written_ahead = [name for name in files if "wal" in name and not name.endswith("afterwards")]
    assert written_ahead
    key_ids = [key.split("_")[1] for key in life.keys]
    for key_id, planted in zip(key_ids, (life.keys[0].rpartition("_")[2], life.tokens[0]), strict=False):
        place.service.tamper(f"UPDATE api_key SET owner_id = '{planted}' WHERE id = '{key_id}'")  # noqa: S608
    seen = found({**secrets, **tokens}, place.files())
    assert {each.partition(",")[0] for each in seen} == {"key 0", "claim token 0"}
