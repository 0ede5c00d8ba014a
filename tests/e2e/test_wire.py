"""Requests on the wire that no well-behaved client sends, and a real server's responses."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.e2e.service import PATIENCE, Client, Service, refusals, seconds
from tests.harness import Refused
from tests.siege.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    block,
    frame,
    framed,
    headers,
)
from tumbler.v1 import api_key_pb2, api_key_service_pb2, event_pb2
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub
from tumbler_server import shares

SERVICE = api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"]

METHODS = [method.name for method in SERVICE.methods]


def send(client: Client, method: str, data: bytes) -> bytes:
    """Send these bytes as an RPC's request and return the bytes of its response."""
    path = f"/{SERVICE.full_name}/{method}"
    with refusals():
        if SERVICE.methods_by_name[method].server_streaming:
            return next(client.channel.unary_stream(path)(data, metadata=client.metadata, timeout=PATIENCE))
        return client.channel.unary_unary(path)(data, metadata=client.metadata, timeout=PATIENCE)


def refused(client: Client, method: str, request: object) -> Refused:
    """Call an RPC that must be refused, and return the refusal."""
    with pytest.raises(Refused) as refusal:
        client.call(method, request)
    return refusal.value


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_the_callers_mistake(sqlite_server: Service, method: str) -> None:
    """Bytes that are no protobuf message are refused as UNDECODABLE, with the name of the expected message."""
    with pytest.raises(Refused) as refusal:
        send(sqlite_server, method, b"\xff\xff\xff\xff")
    assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")
    assert refusal.value.info.domain == "tumbler.dev"
    assert refusal.value.info.metadata["message"] == SERVICE.methods_by_name[method].input_type.full_name


def test_a_string_that_is_not_utf8_is_the_callers_mistake(sqlite_server: Service) -> None:
    """A string that is not UTF-8 is refused as UNDECODABLE, not as an internal error."""
    project_id = b"\x0a\x02\xc3\x28"
    with pytest.raises(Refused) as refusal:
        send(sqlite_server, "Create", project_id)
    assert (refusal.value.code, refusal.value.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE")


def test_rubbish_without_a_key_tells_nothing(sqlite_server: Service) -> None:
    """Without a key, an undecodable request is refused as UNAUTHENTICATED, which reveals nothing of its format."""
    with pytest.raises(Refused) as refusal:
        send(sqlite_server.connect(""), "Create", b"\xff\xff\xff\xff")
    assert refusal.value.reason == "UNAUTHENTICATED"


def test_fields_of_a_newer_client_are_ignored(sqlite_server: Service, project: str) -> None:
    """Fields that the server does not know are ignored, and the rest of the request counts."""
    unknown = b"\xfa\x3e\x03new"  # field 1007
    answer = send(sqlite_server, "Create", pb.CreateRequest(project_id=project).SerializeToString() + unknown)
    assert pb.CreateResponse.FromString(answer).api_key.project_id == project


def test_a_message_beyond_every_limit_is_not_read(sqlite_server: Service) -> None:
    """A request of several megabytes is refused before it is parsed, and the connection stays usable."""
    refusal = refused(sqlite_server, "Create", pb.CreateRequest(project_id="acme", name="n" * 2**21))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sqlite_server.verdict(sqlite_server.key) == "VALID"


def test_random_bytes_never_break_the_server(sqlite_server: Service) -> None:
    """Random bytes never cause an internal error and never break the server."""
    for _ in range(100):
        for method in ("Create", "Verify", "Update"):
            try:
                send(sqlite_server, method, os.urandom(24))
            except Refused as refusal:
                reason = refusal.reason
                assert reason in ("UNDECODABLE", "INVALID_FIELD")
    assert sqlite_server.verdict(sqlite_server.key) == "VALID"


def test_every_error_tells_its_reason(server: Service, project: str) -> None:
    """Every error has a machine-readable reason and metadata that names its subject."""
    made = server.create(project_id=project, name="twin")
    twin = server.create(project_id=project, name="twin")
    revoked = server.create(project_id=project)
    server.revoke(revoked.api_key.id)
    rotated = server.create(project_id=project)
    successor = server.rotate(rotated.api_key.id).api_key.id
    request_id = str(uuid4())
    server.create(project_id=project, request_id=request_id)
    reader = server.caller("tumbler:keys:read", "tumbler:keys:create", project_id=project)
    stale = api_key_pb2.ApiKey(id=made.api_key.id, name="other", etag="stale")
    by_name = pb.KeyName(project_id=project, name="twin")
    nobody = "0" * 16
    expected = [
        (server, "Get", pb.GetRequest(key_id=nobody), "NOT_FOUND", "KEY_NOT_FOUND", {"key_id": nobody}),
        (
            server,
            "SetActive",
            pb.SetActiveRequest(key_id=revoked.api_key.id),
            "FAILED_PRECONDITION",
            "KEY_REVOKED",
            {"key_id": revoked.api_key.id},
        ),
        (
            server,
            "Rotate",
            pb.RotateRequest(key_id=rotated.api_key.id),
            "FAILED_PRECONDITION",
            "KEY_SUPERSEDED",
            {"key_id": rotated.api_key.id, "replaced_by_key_id": successor},
        ),
        (
            server,
            "SetActive",
            pb.SetActiveRequest(by_name=by_name),
            "FAILED_PRECONDITION",
            "NAME_AMBIGUOUS",
            {"key_ids": ",".join(sorted([made.api_key.id, twin.api_key.id]))},
        ),
        (
            server,
            "Update",
            pb.UpdateRequest(api_key=stale, update_mask=FieldMask(paths=["name"])),
            "ABORTED",
            "ETAG_MISMATCH",
            {"key_id": made.api_key.id},
        ),
        (
            server,
            "Create",
            pb.CreateRequest(project_id=project, name="another", request_id=request_id),
            "ALREADY_EXISTS",
            "REQUEST_ID_REUSED",
            {"request_id": request_id},
        ),
        (
            reader,
            "Revoke",
            pb.RevokeRequest(key_id=made.api_key.id),
            "PERMISSION_DENIED",
            "SCOPE_MISSING",
            {"scope": "tumbler:keys:revoke"},
        ),
        (
            reader,
            "List",
            pb.ListRequest(project_id="elsewhere"),
            "PERMISSION_DENIED",
            "OTHER_PROJECT",
            {},
        ),
        (
            reader,
            "Create",
            pb.CreateRequest(project_id=project, scopes=["tumbler:*"]),
            "PERMISSION_DENIED",
            "SCOPE_ESCALATION",
            {"scope": "tumbler:*"},
        ),
        (server.connect(""), "Get", pb.GetRequest(key_id=nobody), "UNAUTHENTICATED", "UNAUTHENTICATED", {}),
        (server.connect(made.key), "Get", pb.GetRequest(key_id=nobody), "PERMISSION_DENIED", "SCOPE_MISSING", None),
        (
            server,
            "ClaimRotation",
            pb.ClaimRotationRequest(),
            "UNAUTHENTICATED",
            "CLAIM_TOKEN_INVALID",
            {},
        ),
    ]
    for client, method, request, code, reason, metadata in expected:
        refusal = refused(client, method, request)
        assert (refusal.code.name, refusal.reason, refusal.info.domain) == (code, reason, "tumbler.dev")
        assert metadata is None or dict(refusal.info.metadata) == metadata


def test_bad_input_names_every_field_at_once(server: Service) -> None:
    """If several fields break a rule, one response names them all, by path."""
    request = pb.CreateRequest(
        project_id="acme", name="ab", scopes=["fine", "not fine"], allowed_cidrs=["192.0.2.1/24"], ttl=seconds(0)
    )
    assert sorted(refused(server, "Create", request).fields) == ["allowed_cidrs[0]", "name", "scopes[1]", "ttl"]


def test_a_caller_is_known_by_the_address_it_calls_from(server: Service, project: str) -> None:
    """A calling key that is bound to networks is accepted only from those, by the address of the connection."""
    here = server.caller("tumbler:keys:verify", project_id=project, allowed_cidrs=["127.0.0.0/8"])
    elsewhere = server.caller("tumbler:keys:verify", project_id=project, allowed_cidrs=["10.0.0.0/8"])
    assert here.verdict(here.key, client_ip="127.0.0.1") == "VALID"
    assert refused(elsewhere, "Verify", pb.VerifyRequest(key=here.key)).code is grpc.StatusCode.UNAUTHENTICATED


def test_a_caller_over_ipv6_is_known_by_its_address(embedded: Service) -> None:
    """A calling key that is bound to networks is checked over IPv6 as well."""
    try:
        embedded.start(listen="[::1]:0")
    except AssertionError:
        if "cannot listen" in embedded.stderr:
            pytest.skip("this machine has no IPv6")
        raise
    here = embedded.caller("tumbler:keys:verify", allowed_cidrs=["::1"])
    elsewhere = embedded.caller("tumbler:keys:verify", allowed_cidrs=["127.0.0.0/8", "2001:db8::/32"])
    assert here.verdict(here.key, client_ip="::1") == "VALID"
    assert refused(elsewhere, "Verify", pb.VerifyRequest(key=here.key)).code is grpc.StatusCode.UNAUTHENTICATED


def test_a_key_may_come_in_either_header(sqlite_server: Service) -> None:
    """A client may send its key as a bearer token or as x-api-key."""
    client = sqlite_server.connect("")
    for metadata in (
        [("authorization", f"Bearer {sqlite_server.key}")],
        [("authorization", f"bearer {sqlite_server.key}")],
        [("x-api-key", sqlite_server.key)],
    ):
        client.metadata = tuple(metadata)
        assert client.verdict(sqlite_server.key) == "VALID"
    client.metadata = (("authorization", f"Basic {sqlite_server.key}"), ("x-api-key", sqlite_server.key))
    assert refused(client, "Verify", pb.VerifyRequest(key="x")).code is grpc.StatusCode.UNAUTHENTICATED


def test_on_this_machine_tools_may_ask_what_is_offered(sqlite_server: Service) -> None:
    """On a loopback address, reflection lists the services and messages without a key."""
    nobody = sqlite_server.connect("")
    services = {service.name for service in nobody.ask_reflection().list_services_response.service}
    assert services == {SERVICE.full_name, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    answer = nobody.ask_reflection(file_containing_symbol="tumbler.v1.KeyEvent").file_descriptor_response
    assert event_pb2.DESCRIPTOR.serialized_pb in answer.file_descriptor_proto


def test_reflection_can_be_off(embedded: Service) -> None:
    """With --no-reflection, reflection is unimplemented, and calls work as before."""
    embedded.start("--no-reflection")
    with pytest.raises(Refused) as refusal:
        embedded.ask_reflection()
    assert refusal.value.code is grpc.StatusCode.UNIMPLEMENTED
    assert embedded.verdict(embedded.key) == "VALID"


def test_idle_reflection_streams_starve_nobody(embedded: Service) -> None:
    """Eight idle reflection streams take no threads from Verify."""
    embedded.start("--threads", "2")
    with embedded.idle_reflection(8):
        for _ in range(20):
            assert embedded.call("Verify", pb.VerifyRequest(key=embedded.key), timeout=5).valid


def test_a_unix_socket_path_is_refused_as_an_address(tmp_path: Path) -> None:
    """An address that is not HOST:PORT is a usage error."""
    misused = Service(tmp_path).run("serve", "--listen", "unix:/tmp/tumbler")
    assert misused.returncode == 2
    assert "127.0.0.1:50051" in misused.stderr


@pytest.mark.parametrize("in_flight", [90, 300])
def test_many_calls_in_flight_on_one_connection(server: Service, project: str, in_flight: int) -> None:
    """No call is refused if a client keeps as many calls in flight as its connection has streams, or more."""
    key = server.create(project_id=project, scopes=["orders:read"]).key
    gateway = server.create(project_id=project, scopes=["tumbler:keys:verify"]).key
    request, metadata = pb.VerifyRequest(key=key), (("authorization", f"Bearer {gateway}"),)

    async def run() -> list[Any]:
        async with grpc.aio.insecure_channel(server.target) as channel:
            verify = ApiKeyServiceStub(channel).Verify
            await verify(
                request, metadata=metadata, timeout=PATIENCE
            )  # Until the first response, gRPC does not know the connection's limit of streams.

            async def caller() -> None:
                for _ in range(20):
                    assert (await verify(request, metadata=metadata, timeout=PATIENCE)).valid

            return await asyncio.gather(*(caller() for _ in range(in_flight)), return_exceptions=True)

    assert [*filter(None, asyncio.run(run()))] == []


@pytest.mark.parametrize("size", [9_000, 15_500])
def test_headers_that_are_allowed_are_never_refused(sqlite_server: Service, size: int) -> None:
    """Headers of less than 16 KiB are never refused."""
    metadata = [*sqlite_server.metadata, ("x-more", "y" * size)]
    get = ApiKeyServiceStub(sqlite_server.channel).Get
    for _ in range(60):
        with pytest.raises(grpc.RpcError) as raised:
            get(pb.GetRequest(), metadata=metadata, timeout=PATIENCE)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # the request is refused, not its headers


def test_headers_that_are_named_by_a_byte(embedded: Service) -> None:
    """A stranger that repeats a large indexed header thousands of times is cut off and delays no other caller."""
    server = embedded.start()
    host, _, port = server.target.rpartition(":")
    fields = block(headers(f"/{SERVICE.full_name}/Verify"))
    remembered = b"\x40\x01x\x7f\xbd\x1d" + b"y" * 3_900  # RFC 7541, 6.2.1: 3,900 is 127, 61 and 29 times 128
    ends = END_HEADERS | END_STREAM
    calls = b"".join(frame(HEADERS, ends, stream, fields + b"\xbe" * 4_200) for stream in range(3, 201, 2))
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, ends, 1, fields + remembered) + calls)
            read(connection, b"never said")
        assert server.verdict(server.key) == "VALID"
    assert server.stop() == 0


def test_bad_headers_fill_no_log(embedded: Service) -> None:
    """Headers that gRPC cannot parse do not fill the log."""
    server = embedded.start()
    before = len(server.stderr)
    host, _, port = server.target.rpartition(":")
    fields = block([*headers(f"/{SERVICE.full_name}/Verify", without=["te"]), ("te", "z"), ("grpc-timeout", "z")])
    with socket.create_connection((host, int(port)), PATIENCE) as connection, contextlib.suppress(OSError):
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        for stream in range(1, 201, 2):
            connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, stream, fields))
        time.sleep(0.5)
    assert server.stop() == 0
    assert len(server.stderr) - before < 1_000


def call_with_headers(key: str, size: int, stream: int = 3) -> bytes:
    """Return the frames of a Get with ``size`` more bytes of headers, in as many frames as they need."""
    begun = frame(HEADERS, 0, stream, block(headers(f"/{SERVICE.full_name}/Get", key)))
    more = frame(CONTINUATION, 0, stream, block([("x-more", "y" * 1_000)])) * (size // 1_000)
    return begun + more + frame(CONTINUATION, END_HEADERS, stream) + frame(DATA, END_STREAM, stream, framed(b""))


def read(connection: socket.socket, until: bytes) -> bytes:
    """Read until ``until`` has arrived or the peer hangs up."""
    got = b""
    while until not in got and (data := connection.recv(65_536)):
        got += data
    return got


@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_headers_without_end_end_the_connection_of_a_stranger(sqlite_server: Service, size: int) -> None:
    """Headers beyond 16 KiB, which HTTP/2 allows in any number of frames, end a stranger's connection."""
    host, _, port = sqlite_server.target.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        with contextlib.suppress(ConnectionResetError):
            connection.sendall(call_with_headers("", size))
            read(connection, b"never said")


def test_headers_without_end_are_refused_to_who_is_known(sqlite_server: Service) -> None:
    """On an authenticated connection, as through a proxy, headers beyond 16 KiB end the call, not the connection."""
    host, _, port = sqlite_server.target.rpartition(":")
    key = sqlite_server.key
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        fields = headers(f"/{SERVICE.full_name}/Get", key)
        get = frame(HEADERS, END_HEADERS, 1, block(fields)) + frame(DATA, END_STREAM, 1, framed(b""))
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0) + get)
        assert b"key_id" in read(connection, b"key_id")
        connection.sendall(call_with_headers(key, 20_000))
        assert b"the header is" in read(connection, b"the header is")
        time.sleep(0.3)  # long enough for the server to cut the connection
        connection.sendall(frame(PING, 0, 0, b"are you?"))
        assert b"are you?" in read(connection, b"are you?")
        with contextlib.suppress(OSError):  # more than any proxy lets through
            connection.sendall(call_with_headers(key, 300_000, 5))
            read(connection, b"never said")


@pytest.mark.parametrize("path", [b"/\xff\xfe/x", b"/tumbler.v1.ApiKeyService/Verif\xf9"])
def test_a_path_that_is_no_text_harms_nobody(embedded: Service, path: bytes) -> None:
    """A call to a method whose name is not UTF-8 is answered as an unknown method, and other callers are served."""
    server = embedded.start()
    host, _, port = server.target.rpartition(":")
    fields = [(name, path if name == ":path" else value) for name, value in headers("")]
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        for number in range(20):
            connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, block(fields)))
        assert b"Method not found" in read(connection, b"Method not found")
    assert server.verdict(server.key) == server.connect().verdict(server.key) == "VALID"
    assert server.stop() == 0


def test_headers_that_are_no_text_are_not_logged(embedded: Service) -> None:
    """Headers that are not UTF-8 are refused like others and do not appear in the log."""
    server = embedded.start()
    host, _, port = server.target.rpartition(":")
    fields = [*headers(f"/{SERVICE.full_name}/Get"), *[("x", b"\xff")] * 100]
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
        connection.sendall(frame(HEADERS, END_HEADERS, 1, block(fields)))
        assert b"grpc-status" in read(connection, b"grpc-status")
    assert server.verdict(server.key) == "VALID"
    assert server.stop() == 0
    assert "encoding" not in server.stderr


def test_a_stranger_with_many_calls_is_told_late(embedded: Service) -> None:
    """After a hundred refused calls within ten seconds, a stranger's next refusal is late; other callers' are not."""
    own_server = embedded.start()
    stranger = own_server.connect("")
    request = pb.GetRequest()
    for _ in range(shares.PROMPT_REFUSALS.most):
        assert refused(stranger, "Get", request).reason == "UNAUTHENTICATED"
    with pytest.raises(grpc.FutureTimeoutError):
        stranger.begin("Get", request).result(timeout=1)
    assert refused(own_server, "Get", request).reason == "INVALID_FIELD"
    assert own_server.stop() == 0  # pending refusals do not delay the exit


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much a connection has received")
def test_who_sends_without_end_is_heard_no_more(embedded: Service) -> None:
    """The server stops reading from strangers that send without end, and answers other callers meanwhile."""
    server = embedded.start()
    host, _, port = server.target.rpartition(":")
    unknown = frame(250, 0, 0, b"to be ignored") * 4_000
    with contextlib.ExitStack() as open_:

        def flood() -> None:
            connection = open_.enter_context(socket.create_connection((host, int(port)), 2))
            connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
            until = time.monotonic() + PATIENCE
            with contextlib.suppress(TimeoutError):  # nothing is read for two seconds
                while time.monotonic() < until:
                    connection.sendall(unknown)
            assert time.monotonic() < until

        with ThreadPoolExecutor(4) as pool:
            floods = [pool.submit(flood) for _ in range(4)]
            while not all(each.done() for each in floods):
                assert server.verdict(server.key) == "VALID"
            for each in floods:
                each.result()
        assert server.stop() == 0
