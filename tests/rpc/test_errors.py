"""What errors tell callers and the log, and what they never tell."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import peewee
import pytest
import structlog
from google.protobuf.message import Message

from tests.harness import Refused, World, forged
from tests.rpc.test_callers import POLICY, request_for
from tests.rpc.test_list_pages import crowd
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1 import error_reason_pb2
from tumbler_server import errors, logs
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.rotation import Rotations
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.webhook_admin import WebhookAdmin
from tumbler_server.rpc import counting, status
from tumbler_server.rpc.exchange import Exchange
from tumbler_server.rpc.presence import Presence
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.server import SERVICE
from tumbler_server.store.database import Store
from tumbler_server.store.models import ApiKeyRow
from tumbler_server.streams.hub import Hub
from tumbler_server.verify.verifier import Verifier

PROTO = Path(__file__).parents[2] / "protos/tumbler/v1/error_reason.proto"

METHODS = [method.name for method in SERVICE.methods]

INTERNAL = "internal error; the server's log has the details"

DOMAIN: dict[str, tuple[type, str]] = {
    "Create": (Lifecycle, "create"),
    "Get": (Lifecycle, "get"),
    "List": (Listing, "page"),
    "Update": (Lifecycle, "update"),
    "SetActive": (Lifecycle, "set_active"),
    "Revoke": (Lifecycle, "revoke"),
    "Rotate": (Rotations, "rotate"),
    "Verify": (Verifier, "judge"),
    "BatchVerify": (Verifier, "judge"),
    "ListEvents": (Trail, "page"),
    "Watch": (Hub, "serve"),
    "ClaimRotation": (Rotations, "claim"),
    "ListDeliveries": (WebhookAdmin, "page"),
    "Redeliver": (WebhookAdmin, "redeliver"),
    "RotateWebhookSecret": (WebhookAdmin, "replace_secret"),
}

DOORS: tuple[tuple[Any, str], ...] = (
    (Exchange, "judge_headers"),
    (Presence, "enter"),
    (counting, "demand"),
    (Verifier, "remembers"),
)
"""The checks that every call passes before the domain works."""

RESERVED = {"NOT_IMPLEMENTED"}
"""Reasons that no RPC returns any more. They keep their number."""


def _domain_errors() -> set[type]:
    return {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.TumblerError)}


def test_every_domain_error_has_a_status_and_a_reason() -> None:
    """Each domain error has one status and one reason, and the reasons are exactly those of the proto."""
    assert set(status.STATUSES) == _domain_errors() - {errors.TumblerError}
    reasons = [reason for _, reason in status.STATUSES.values()]
    assert len(set(reasons)) == len(reasons)
    named = {name.removeprefix("ERROR_REASON_") for name in dict(error_reason_pb2.ErrorReason.items())}
    assert {*reasons, "INTERNAL", "UNSPECIFIED", *RESERVED} == named


def test_each_reason_has_the_status_that_the_proto_promises() -> None:
    """Each reason is sent with the status that error_reason.proto names."""
    promised = dict(re.findall(r"// ERROR_REASON_([A-Z_]+), ([A-Z_]+):", PROTO.read_text()))
    sent = {reason: code.name for code, reason in status.STATUSES.values()}
    assert {reason: code for reason, code in promised.items() if reason not in RESERVED} == {
        **sent,
        "INTERNAL": "INTERNAL",
    }


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_the_callers_mistake(world: World, method: str) -> None:
    """Undecodable bytes are INVALID_ARGUMENT with the expected message's name, after authentication."""
    name = f"tumbler.v1.{method}Request"
    broken = b"\x0a\xff"  # a string longer than the message
    refused = world.refused(method, broken)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")
    assert refused.info.metadata == {"message": name}
    if method in POLICY:
        assert world.refused(method, broken, key="").reason == "UNAUTHENTICATED"


def test_every_error_says_whose_it_is(world: World) -> None:
    """The domain of ErrorInfo is tumbler.dev, and the details repeat the call's status."""
    for request in (pb.GetRequest(key_id="0" * 16), pb.GetRequest()):
        refused = world.refused("Get", request)
        assert refused.info.domain == "tumbler.dev"
        assert refused.status.code == refused.code.value[0]
        assert refused.status.message == refused.message


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Return a function that returns what was written to the log, stdout and stderr since its last call.

    The test must call it first: pytest replaces the streams between the setup and the test itself.
    """

    def written() -> str:
        logs.configure("debug", "json")
        output = capsys.readouterr()
        return output.err + output.out

    yield written
    structlog.reset_defaults()


@pytest.fixture
def canaries(world: World) -> list[str]:
    """Return texts that must never be shown: a key, its secret, hash and digest, and SQL."""
    created = world.create()
    (row,) = world.core.store.select(ApiKeyRow.select().where(ApiKeyRow.id == created.api_key.id))
    parsed = keyformat.parse(created.key)
    return [created.key, parsed.secret, row.secret_hash, bytes(row.digest).hex(), "SELECT secret_hash FROM api_key"]


class Unheard(errors.TumblerError):
    """A domain error without a status."""


def _faults(canaries: list[str]) -> Iterator[Exception]:
    text = " ".join(canaries)
    yield RuntimeError(text)
    yield KeyError(*canaries)
    yield peewee.IntegrityError(text)
    yield peewee.OperationalError(text)
    yield Unheard(text, key=text)
    chained = RuntimeError("outer")
    chained.__cause__ = ValueError(text)
    yield chained


def _says_nothing(world: World, method: str, log: Callable[[], str], canaries: list[str]) -> None:
    log()
    request = request_for(method, "0" * 16)
    if method == "ClaimRotation":  # a valid token, so that the call gets as far as others
        request.claim_token = ClaimTokens(world.config.installation.peppers()).token("0" * 16, 1)
    refused = world.refused(method, request)
    assert (refused.code, refused.reason, refused.message) == (grpc.StatusCode.INTERNAL, "INTERNAL", INTERNAL)
    assert not refused.info.metadata
    logged = log()
    assert f'"method": "{method}"' in logged
    for canary in canaries:
        assert canary.encode() not in refused.status.SerializeToString()
        assert canary not in logged


@pytest.mark.parametrize("method", METHODS)
def test_a_fault_at_the_door_is_told_to_nobody(
    world: World, method: str, log: Callable[[], str], canaries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every RPC, an unexpected exception is INTERNAL with a fixed text; its own reaches no caller and no log."""
    for fault in _faults(canaries):

        def fail(*_: Any, fault: Exception = fault) -> None:
            raise fault

        for owner, name in DOORS:
            with monkeypatch.context() as broken:
                broken.setattr(owner, name, fail)
                _says_nothing(world, method, log, canaries)


@pytest.mark.parametrize("method", METHODS)
def test_a_fault_in_the_domain_is_told_to_nobody(
    world: World, method: str, log: Callable[[], str], canaries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every RPC, an unexpected exception after authentication is also INTERNAL with a fixed text."""
    owner, name = DOMAIN[method]
    for fault in _faults(canaries):

        def fail(*_: Any, fault: Exception = fault) -> Any:
            raise fault

        monkeypatch.setattr(owner, name, fail)
        _says_nothing(world, method, log, canaries)


def test_an_error_of_the_database_is_told_to_nobody(world: World, log: Callable[[], str]) -> None:
    """If the database refuses a statement, the caller gets the fixed text, and the log no SQL; nothing is written."""
    created = world.create()
    world.core.store.write_unserialized(lambda db: db.execute_sql("ALTER TABLE event RENAME COLUMN detail TO lost"))
    log()
    refused = world.refused("Create", pb.CreateRequest(project_id="acme", name="never made"))
    assert (refused.code, refused.message) == (grpc.StatusCode.INTERNAL, INTERNAL)
    logged = log()
    assert '"method": "Create"' in logged
    assert "INSERT" not in logged
    assert "never made" not in logged
    assert [key.id for key in world.page(project_id="acme").api_keys] == [created.api_key.id]
    world.core.store.write_unserialized(lambda db: db.execute_sql("ALTER TABLE event RENAME COLUMN lost TO detail"))
    events = len(world.events())
    assert world.create(name="made").api_key.name == "made"
    assert [event.revision for event in world.events()] == list(range(1, events + 2))


def test_an_ordinary_days_log_holds_no_secret(world: World, log: Callable[[], str]) -> None:
    """Even at level debug, no key that was created, verified, mistyped or used for a call is logged."""
    log()
    created = world.create(name="worker")
    rotated = world.rotate(created.api_key.id)
    presented = [created.key, rotated.key, forged(created.key), created.key[:-1], world.caller("tumbler:keys:read")]
    for text in presented:
        world.verdict(text)
        try:
            world.page(text)
        except Refused as refused:
            assert text not in str(refused)  # noqa: PT017 - some are accepted
    world.revoke(created.api_key.id)
    logged = log()
    for text in (*presented, world.operator):
        assert text[-49:-6] not in logged


@pytest.mark.parametrize("method", sorted(POLICY))
def test_a_database_that_does_not_answer_is_unavailable(
    world: World, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the database is down beyond the staleness bound, every RPC is UNAVAILABLE until it returns."""
    created = world.create()
    assert world.verdict(created.key) == "VALID"

    def fail(*_: Any) -> None:
        raise errors.StoreUnavailable

    with monkeypatch.context() as away:
        for name in ("read", "select", "write_serialized", "version"):
            away.setattr(Store, name, fail)
        world.let_lapse()
        request = pb.VerifyRequest(key=created.key) if method == "Verify" else request_for(method, created.api_key.id)
        refused = world.refused(method, request)
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    world.let_lapse()  # the next call checks whether the database is back
    assert world.verdict(created.key) == "VALID"


MANY = 2_000

MONSTROUS: dict[str, tuple[str, Message]] = {
    "scopes": ("Create", pb.CreateRequest(scopes=["not a scope"] * 100)),
    "different scopes": ("Create", pb.CreateRequest(scopes=[f"not a scope {number}" for number in range(MANY)])),
    "networks": ("Create", pb.CreateRequest(allowed_cidrs=["no network"] * MANY)),
    "metadata": ("Create", pb.CreateRequest(metadata={f"{number:03}" + "🔑" * 61: "\0" for number in range(50)})),
    "more metadata than may be": (
        "Create",
        pb.CreateRequest(metadata={f"{number:03}" + "🔑" * 61: "\0" for number in range(400)}),
    ),
    "metadata that is not printable": (
        "Create",
        pb.CreateRequest(metadata={f"{number:03}" + "\U000e0fff" * 61: "\0" for number in range(50)}),
    ),
    "paths": ("Update", pb.UpdateRequest(update_mask={"paths": [f"p{number}" for number in range(MANY)]})),
    "long path": ("Update", pb.UpdateRequest(update_mask={"paths": ["p" * 100_000]})),
    "states": ("List", pb.ListRequest(states=[99] * MANY)),
    "required scopes": ("Verify", pb.VerifyRequest(required_scopes=["not a scope"] * 1_000)),
    "too large": ("Create", pb.CreateRequest(metadata={f"{number}": "\0" * 1_024 for number in range(MANY)})),
    "long text": ("Revoke", pb.RevokeRequest(key_id="é" * MANY, comment="é" * MANY)),
    "same name": ("SetActive", pb.SetActiveRequest(by_name={"project_id": "acme", "name": "default"})),
}


ROOM = 6 * 1_024
"""The most bytes of metadata that an error takes. Clients accept 8 KiB."""


@pytest.mark.parametrize("name", MONSTROUS)
def test_an_error_always_fits_into_grpcs_metadata(world: World, name: str) -> None:
    """However much is wrong, status and details fit into a client's metadata limit, with at least one violation."""
    if name == "same name":
        crowd(world, 500)
    method, request = MONSTROUS[name]
    refused = world.refused(method, request)
    assert refused.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    details = len(base64.b64encode(refused.status.SerializeToString()))  # as a client may count them
    assert details + len(quote(refused.message)) < ROOM
    if refused.code is grpc.StatusCode.INVALID_ARGUMENT:
        assert refused.reason == "REQUEST_TOO_LARGE" if name == "too large" else refused.fields
    else:
        ids = refused.info.metadata["key_ids"].split(",")
        assert len(ids) > 1
        assert world.get(ids[0]).name == "default"


def test_what_is_left_out_is_counted(world: World) -> None:
    """If an error has no room for all violations, the last one has no field and gives the number of the rest."""
    refused = world.refused("Create", pb.CreateRequest(project_id="acme", scopes=["not a scope"] * 100))
    *shown, last = refused.violations
    assert [field for field, _ in shown] == [f"scopes[{number}]" for number in range(len(shown))]
    assert 10 < len(shown) < 100
    assert last == ("", f"and {100 - len(shown)} more")
    few = world.refused("Create", pb.CreateRequest(project_id="acme", scopes=["not a scope"] * 10))
    assert few.fields == [f"scopes[{number}]" for number in range(10)]
