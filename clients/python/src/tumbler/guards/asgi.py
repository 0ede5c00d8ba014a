"""A guard for every ASGI framework: a middleware for HTTP requests and WebSockets.

::

    app = RequireKey(app, verifier=verifier, scopes=["orders:read"], exempt=["/healthz"])

Behind it, ``scope["tumbler"]`` (in Starlette also ``request.state.tumbler``) is the `Verification` of the key that let
the request pass. When that key stops being valid, the guard closes a WebSocket, breaks off a response that is still
being streamed, and cancels ``app``.
"""

import contextlib
import json
from collections.abc import Callable, Iterable

from tumbler import aio
from tumbler.guards._asgi import STREAM, App, HeldResponse, KeyEnded, Receive, Scope, Send, closing
from tumbler.guards._rules import (
    KEY_REQUIRED,
    Refusal,
    Rules,
    Scopes,
    address_or_none,
    decoded,
    presented_key,
    refusal_for_error,
    refusal_for_verdict,
)
from tumbler.guards._streams import Streams
from tumbler.projects import ProjectId

__all__ = ["EndStreams", "KeyEnded", "RequireKey", "peer_address"]


def peer_address(scope: Scope) -> str | None:
    """Return the IP address of the peer, or None if it has none."""
    client = scope.get("client")
    return address_or_none(client[0]) if client else None


class RequireKey:
    """Lets a request pass only with a key that the verifier accepts."""

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
        end_streams: bool = True,
    ) -> None:
        """Guard an application.

        Args:
            app: The application to guard.
            verifier: Verifies every key.
            scopes: Scopes that a key must grant: the same for all requests, or a function of the ASGI scope. A request
                for which it returns None is refused, whatever the key.
            exempt: Requests that need no key: their exact paths, or a function of the ASGI scope. Nothing is exempt by
                default, so put a middleware that answers CORS preflights outside this one.
            client_ip: Returns the address of a request, if not the peer's: behind a proxy, what the proxy says.
            environment_id: The environment that keys must belong to. Default: any.
            project_id: A project, or several: keys must belong to one of them. This narrows what the verifier accepts,
                and never widens it. Default: what the verifier accepts.
            end_streams: End what a key let in when the key stops being valid: WebSockets, with code 1008, and responses
                that have begun. A response with a content-length that is sent in one piece runs to its end.

        """
        if isinstance(exempt, str):
            raise TypeError("exempt: must be a sequence of paths, or a function of the scope, not one string")
        self._app = app
        self._verifier = verifier
        self._rules = Rules(scopes, client_ip, environment_id, project_id)
        self._streams = Streams(verifier, end_streams)
        self._exempt = exempt if callable(exempt) else _by_path(frozenset(exempt))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it to the application."""
        if scope["type"] == "lifespan" or self._exempt(scope):
            await self._app(scope, receive, send)
            return
        held = HeldResponse(scope, send)
        refusal, scope = await self._check(scope, held)
        if refusal is not None:
            with contextlib.suppress(OSError):  # servers raise this if the caller has gone
                await _refuse(refusal, scope, send)
        else:
            await held.run(self._app, scope, receive)

    async def _check(self, scope: Scope, held: HeldResponse) -> tuple[Refusal | None, Scope]:
        since = self._streams.change_count
        try:
            key = presented_key(decoded(scope["headers"]))
            if key is None:
                return KEY_REQUIRED, scope
            arguments = self._rules.arguments(key, scope)
            verification = await self._verifier.verify(**arguments)
        except Exception as error:
            return refusal_for_error(error), scope
        refusal = refusal_for_verdict(verification)
        if refusal is None:
            held.let_in(lambda ended: self._streams.hold(arguments, verification, since, ended))
        return refusal, {**scope, "tumbler": verification, "state": {**scope.get("state", {}), "tumbler": verification}}


class EndStreams:
    """Lets a guard inside it end streams: `tumbler.guards.fastapi.RequireKey`.

    ::

        app.add_middleware(EndStreams)
    """

    def __init__(self, app: App) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "lifespan" or STREAM in scope:
            await self._app(scope, receive, send)
        else:
            await HeldResponse(scope, send).run(self._app, scope, receive)


def _by_path(paths: frozenset[str]) -> Callable[[Scope], bool]:
    return lambda scope: scope["path"] in paths


async def _refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    prefix = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send(closing(refusal))
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
