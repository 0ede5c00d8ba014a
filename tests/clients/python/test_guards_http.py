"""The guards of ASGI and of FastAPI."""

import asyncio
import logging
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.requests import HTTPConnection

from tests.clients.python.says import GOOD, KEY_TEXT, OUTCOMES, SaysAio
from tumbler import Code, Verification
from tumbler.guards import asgi, fastapi

BEARER = {"authorization": f"Bearer {GOOD}"}


def get(app: Any, path: str = "/orders", client: tuple[str, int] = ("192.0.2.7", 1), **headers: str) -> httpx.Response:
    """Send a request to an application."""

    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get(path, headers=headers)

    return asyncio.run(request())


def connect(app: Any, headers: Any = (), extensions: Any = None) -> list[dict[str, Any]]:
    """Request a WebSocket of an application, and return what it sends."""
    scope = {
        "type": "websocket",
        "path": "/socket",
        "raw_path": b"/socket",
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": ("192.0.2.7", 1),
        "subprotocols": [],
        "extensions": extensions or {},
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def application() -> FastAPI:
    """Return an application that answers with the key's owner."""
    app = FastAPI()

    @app.get("/orders")
    async def orders(request: Request) -> dict[str, Any]:
        assert request.state.tumbler is request.scope["tumbler"]
        return {"owner": request.state.tumbler.owner_id}

    @app.get("/healthz")
    async def healthz(request: Request) -> dict[str, Any]:
        return {"known": "tumbler" in request.scope}

    @app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.scope["tumbler"].owner_id)
        await websocket.close()

    return app


class TestAsgi:
    """The middleware."""

    def test_passes(self) -> None:
        """A good key lets a request pass, and the application knows the key's identity."""
        response = get(asgi.RequireKey(application(), verifier=SaysAio()), **BEARER)
        assert (response.status_code, response.json()) == (200, {"owner": "owner"})

    def test_no_key(self) -> None:
        """Without a key the verifier is not called."""
        says = SaysAio()
        response = get(asgi.RequireKey(application(), verifier=says))
        assert (response.status_code, response.json()) == (401, {"error": KEY_TEXT})
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["content-type"] == "application/json"
        assert says.asked == []

    @pytest.mark.parametrize(("outcome", "_", "status", "text"), OUTCOMES)
    def test_outcomes(self, outcome: Any, _: str, status: int, text: str, caplog: pytest.LogCaptureFixture) -> None:
        """Each outcome has one status and one generic text. The log says more, and never the key."""
        says = SaysAio()
        says.outcome = outcome
        with caplog.at_level(logging.INFO, "tumbler.guards"):
            response = get(asgi.RequireKey(application(), verifier=says), **BEARER)
        assert (response.status_code, response.json()) == (status, {"error": text})
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)
        assert (outcome.name if isinstance(outcome, Code) else "as the test has it") in caplog.text
        assert GOOD not in caplog.text

    @pytest.mark.parametrize(("outcome", "_", "status", "text"), OUTCOMES)
    @pytest.mark.usefixtures("unwritable")
    def test_outcomes_that_cannot_be_logged(self, outcome: Any, _: str, status: int, text: str) -> None:
        """The answers are the same."""
        says = SaysAio()
        says.outcome = outcome
        response = get(asgi.RequireKey(application(), verifier=says), **BEARER)
        assert (response.status_code, response.json()) == (status, {"error": text})

    def test_exempt(self) -> None:
        """Exempt requests need no key, by path or by a function. Others do."""
        for exempt in (["/healthz"], lambda scope: scope["path"] == "/healthz"):
            app = asgi.RequireKey(application(), verifier=SaysAio(), exempt=exempt)
            assert get(app, "/healthz").json() == {"known": False}
            assert get(app, "/healthz/").status_code == 401

    def test_what_is_demanded(self) -> None:
        """Scopes, environment, project and address are the configured ones, or functions of the request."""
        says = SaysAio()
        get(
            asgi.RequireKey(
                application(), verifier=says, scopes=["orders:read"], environment_id="live", project_id="acme"
            ),
            **BEARER,
        )
        get(
            asgi.RequireKey(
                application(), verifier=says, scopes=lambda scope: [scope["path"]], client_ip=lambda _: "203.0.113.5"
            ),
            **BEARER,
        )
        get(asgi.RequireKey(application(), verifier=says), client=("testclient", 1), **{"x-api-key": "two"})
        assert says.asked == [
            {
                "key": GOOD,
                "required_scopes": ("orders:read",),
                "client_ip": "192.0.2.7",
                "environment_id": "live",
                "project_id": ("acme",),
            },
            {
                "key": GOOD,
                "required_scopes": ("/orders",),
                "client_ip": "203.0.113.5",
                "environment_id": None,
                "project_id": None,
            },
            {"key": "two", "required_scopes": (), "client_ip": None, "environment_id": None, "project_id": None},
        ]

    def test_a_request_for_which_no_scopes_are_listed(self) -> None:
        """It is refused, whatever the key, without a verification. Without a key it is refused for that."""
        says = SaysAio()
        scopes: dict[str, list[str]] = {}
        guarded = (
            asgi.RequireKey(application(), verifier=says, scopes=lambda scope: scopes.get(scope["path"])),
            dependent(fastapi.RequireKey(says, scopes_of=lambda request: scopes.get(request.url.path))),
        )
        for app in guarded:
            assert get(app, **BEARER).status_code == 403
            assert get(app).status_code == 401
        assert says.asked == []

    def test_a_caller_who_has_gone(self) -> None:
        """If the caller has gone, the error of sending a refusal does not reach the server."""

        async def send(_: Any) -> None:
            raise OSError("the caller has gone")

        scope = {"type": "http", "path": "/orders", "headers": []}
        asyncio.run(asgi.RequireKey(application(), verifier=SaysAio())(scope, None, send))

    def test_lifespan(self) -> None:
        """A server's lifespan messages pass."""
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["type"])

        asyncio.run(asgi.RequireKey(app, verifier=SaysAio())({"type": "lifespan"}, None, None))
        assert seen == ["lifespan"]

    def test_websocket(self) -> None:
        """A WebSocket is accepted with a good key."""
        app = asgi.RequireKey(application(), verifier=SaysAio())
        sent = connect(app, [(b"authorization", BEARER["authorization"].encode())])
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]

    def test_websocket_refused(self) -> None:
        """A WebSocket is refused before it is accepted, with an HTTP answer if the server can send one."""
        app = asgi.RequireKey(application(), verifier=SaysAio())
        assert connect(app) == [{"type": "websocket.close", "code": 1008, "reason": KEY_TEXT}]
        start, body = connect(app, extensions={"websocket.http.response": {}})
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
        assert KEY_TEXT.encode() in body["body"]

    @pytest.mark.parametrize("options", [{"scopes": "orders:read"}, {"exempt": "/healthz"}], ids=str)
    def test_one_text_is_no_list(self, options: Any) -> None:
        """A string in place of a list is refused."""
        with pytest.raises(TypeError):
            asgi.RequireKey(application(), verifier=SaysAio(), **options)


def dependent(guard: fastapi.RequireKey) -> FastAPI:
    """Return an application with a route that needs a key, and one that does not."""
    app = FastAPI()

    @app.get("/orders")
    async def orders(caller: Annotated[Verification, Depends(guard)]) -> dict[str, str]:
        return {"owner": caller.owner_id}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {}

    @app.websocket("/socket")
    async def socket(websocket: WebSocket, caller: Annotated[Verification, Depends(guard)]) -> None:
        await websocket.accept()
        await websocket.send_text(caller.owner_id)
        await websocket.close()

    return app


class TestFastApi:
    """The dependency."""

    def test_passes(self) -> None:
        """A good key lets a request pass, the route gets the key's identity, and other routes are unchanged."""
        says = SaysAio()
        app = dependent(
            fastapi.RequireKey(says, "orders:read", "orders:list", environment_id="live", project_id="acme")
        )
        assert get(app, **BEARER).json() == {"owner": "owner"}
        assert says.asked == [
            {
                "key": GOOD,
                "required_scopes": ("orders:read", "orders:list"),
                "client_ip": "192.0.2.7",
                "environment_id": "live",
                "project_id": ("acme",),
            }
        ]
        assert get(app, "/healthz").status_code == 200

    def test_no_key(self) -> None:
        """Without a key the verifier is not called."""
        says = SaysAio()
        response = get(dependent(fastapi.RequireKey(says)))
        assert (response.status_code, response.json()) == (401, {"detail": KEY_TEXT})
        assert response.headers["www-authenticate"] == "Bearer"
        assert says.asked == []

    @pytest.mark.parametrize(("outcome", "_", "status", "text"), OUTCOMES)
    def test_outcomes(self, outcome: Any, _: str, status: int, text: str) -> None:
        """Each outcome has one status and one generic text."""
        says = SaysAio()
        says.outcome = outcome
        response = get(dependent(fastapi.RequireKey(says)), **BEARER)
        assert (response.status_code, response.json()) == (status, {"detail": text})
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)

    def test_by_request(self) -> None:
        """Scopes and address can be functions of the request."""
        says = SaysAio()

        def scopes(request: HTTPConnection) -> list[str]:
            return [request.url.path]

        get(dependent(fastapi.RequireKey(says, scopes_of=scopes, client_ip=lambda _: None)), **{"x-api-key": "two"})
        assert says.asked == [
            {
                "key": "two",
                "required_scopes": ("/orders",),
                "client_ip": None,
                "environment_id": None,
                "project_id": None,
            }
        ]
        with pytest.raises(TypeError):
            fastapi.RequireKey(says, "orders:read", scopes_of=scopes)

    def test_websocket(self) -> None:
        """A WebSocket is accepted with a good key, and refused without one before it is accepted."""
        app = dependent(fastapi.RequireKey(SaysAio()))
        sent = connect(app, [(b"x-api-key", GOOD.encode())])
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
        (refused,) = connect(app)
        assert (refused["type"], refused["code"]) == ("websocket.close", 1008)

    def test_described(self) -> None:
        """The OpenAPI description says that a route needs a key."""
        description = get(dependent(fastapi.RequireKey(SaysAio())), "/openapi.json").json()
        assert description["paths"]["/orders"]["get"]["security"] == [{"ApiKey": []}]
        assert description["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
