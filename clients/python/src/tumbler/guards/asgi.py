"""A guard for every ASGI framework: a middleware that looks at HTTP requests and WebSockets alike.

::

    app = RequireKey(app, verifier=verifier, scopes=["orders:read"], exempt=["/healthz"])

Behind it, ``scope["tumbler"]`` (in Starlette also ``request.state.tumbler``) is the `Verification` of the key that let
the request pass.
"""

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from tumbler import aio
from tumbler.guards._rules import (
    NO_KEY,
    Refusal,
    Rules,
    Scopes,
    address_or_none,
    decoded,
    key_in,
    refusal_after,
    refusal_of,
)
from tumbler.projects import ProjectId

__all__ = ["RequireKey", "peer_address"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013


def peer_address(scope: Scope) -> str | None:
    """Return the address that a request comes from; None where it comes from none."""
    client = scope.get("client")
    return address_or_none(client[0]) if client else None


class RequireKey:
    """Lets a request pass only with a key that the verifier says yes to."""

    def __init__(
        self,
        app: App,
        *,
        verifier: aio.Verifier,
        scopes: Scopes[Scope] = (),
        exempt: Callable[[Scope], bool] | Iterable[str] = (),
        client_ip: Callable[[Scope], str | None] = peer_address,
        environment_id: str | None = None,
        project_id: ProjectId | None = None,
    ) -> None:
        """Put a guard before an application.

        Args:
            app: What is guarded.
            verifier: Asked about every key.
            scopes: What a key must grant: for all requests the same, or a function of the ASGI scope.
            exempt: Which requests need no key: their exact paths, or a function of the ASGI scope. None is exempt by
                itself, so let a middleware that answers CORS preflights stand before this one.
            client_ip: Where a request comes from, if not from the peer: behind a proxy, what the proxy says.
            environment_id: The environment that keys must belong to; left out: any.
            project_id: The project, or several, that keys must belong to one of; left out: those that the verifier
                accepts. It narrows these, and never widens them.

        """
        if isinstance(exempt, str):
            raise TypeError("exempt: a sequence of paths, or a function of the scope, not one text")
        self._app = app
        self._verifier = verifier
        self._rules = Rules(scopes, client_ip, environment_id, project_id)
        self._exempt = exempt if callable(exempt) else _by_path(frozenset(exempt))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "lifespan" and not self._exempt(scope):
            refusal, scope = await self._judge(scope)
            if refusal is not None:
                with contextlib.suppress(OSError):  # a server says so where the caller has gone
                    await _refuse(refusal, scope, send)
                return
        await self._app(scope, receive, send)

    async def _judge(self, scope: Scope) -> tuple[Refusal | None, Scope]:
        try:
            key = key_in(decoded(scope["headers"]))
            if key is None:
                return NO_KEY, scope
            told = await self._verifier.verify(**self._rules.arguments(key, scope))
        except Exception as error:
            return refusal_after(error), scope
        return refusal_of(told), {**scope, "tumbler": told, "state": {**scope.get("state", {}), "tumbler": told}}


def closing_code(refusal: Refusal) -> int:
    """Return what a WebSocket is closed with that cannot be answered otherwise."""
    return _TRY_AGAIN_LATER if refusal.http >= 500 else _POLICY_VIOLATION


def _by_path(paths: frozenset[str]) -> Callable[[Scope], bool]:
    return lambda scope: scope["path"] in paths


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    prefix = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": closing_code(refusal), "reason": refusal.text})
            return
        prefix = "websocket.http"
    body = json.dumps({"error": refusal.text}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    await send(
        {
            "type": f"{prefix}.response.start",
            "status": refusal.http,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": f"{prefix}.response.body", "body": body})
