"""The one credential of a request, for the server and each guard, with the rows that test all languages."""

import json
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.clients.python.says import KEY_TEXT, SaysAio
from tests.clients.python.test_guards_grpc import Loop, Threads, call
from tests.clients.python.test_guards_http import application, connect, dependent
from tumbler.credential import Refused, credential_in
from tumbler.guards import asgi, fastapi
from tumbler_server.errors import Unauthenticated
from tumbler_server.rpc import auth

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "vectors" / "credentials.json").read_text())[
    "vectors"
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])


def headers_of(row: dict[str, Any]) -> list[tuple[str, str | bytes]]:
    """Return the headers of a row."""
    return [(name, value) for name, value in row["headers"]]


@rows
def test_row(row: dict[str, Any]) -> None:
    """Each row has its one credential, or the reason why it has none."""
    expected = row["credential"] if "credential" in row else Refused[row["refused"].upper()]
    assert credential_in(headers_of(row)) == expected


def test_bytes_are_no_credential() -> None:
    """A binary value of gRPC is not a key, but counts as a credential."""
    assert credential_in([("x-api-key", b"good")]) is Refused.MISSING
    assert credential_in([("authorization", b"Bearer good"), ("x-api-key", "good")]) is Refused.AMBIGUOUS


@rows
def test_server(row: dict[str, Any]) -> None:
    """The server takes exactly the credential of a row."""
    if "credential" in row:
        assert auth.credential(headers_of(row)) == row["credential"]
    else:
        with pytest.raises(Unauthenticated):
            auth.credential(headers_of(row))


def check(row: dict[str, Any], says: SaysAio, passed: bool, logged: str) -> None:
    """Check that a guard did what a row says."""
    assert passed is ("credential" in row)
    assert [question["key"] for question in says.asked] == ([row["credential"]] if passed else [])
    assert ("more than one credential" in logged) is (row.get("refused") == "ambiguous")


@rows
@pytest.mark.parametrize("kind", ["asgi", "fastapi"])
def test_http(row: dict[str, Any], kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """A guard of ASGI or FastAPI verifies a row's credential, or refuses. The log says if there were two."""
    says = SaysAio()
    app = asgi.RequireKey(application(), verifier=says) if kind == "asgi" else dependent(fastapi.RequireKey(says))
    with caplog.at_level(logging.INFO, "tumbler.guards"):
        sent = connect(app, [(name.encode(), value.encode()) for name, value in row["headers"]])
    check(row, says, sent[0]["type"] == "websocket.accept", caplog.text)


def test_http_names_without_case(caplog: pytest.LogCaptureFixture) -> None:
    """Header names are compared without case, in case an ASGI server has not lowered them."""
    for headers in ([(b"X-API-Key", b"good")], [(b"Authorization", b"Bearer good")]):
        assert connect(asgi.RequireKey(application(), verifier=SaysAio()), headers)[0]["type"] == "websocket.accept"
    both = [(b"X-API-Key", b"good"), (b"authorization", b"Basic x")]
    assert connect(asgi.RequireKey(application(), verifier=SaysAio()), both)[0]["type"] == "websocket.close"


@pytest.mark.parametrize("kind", [Threads, Loop], ids=["sync", "aio"])
def test_grpc(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A guard of a gRPC server verifies a row's credential, or refuses. The log says if there were two."""
    server = kind()
    try:
        for row in ROWS:
            if any("\t" in value for _, value in row["headers"]):
                continue  # gRPC does not send these
            server.says.asked.clear()
            caplog.clear()
            with caplog.at_level(logging.INFO, "tumbler.guards"):
                if "credential" in row:
                    call(server, metadata=headers_of(row))
                else:
                    with pytest.raises(grpc.RpcError) as refused:
                        call(server, metadata=headers_of(row))
                    assert refused.value.details() == KEY_TEXT
            check(row, server.says, "credential" in row, caplog.text)
    finally:
        server.stop()
