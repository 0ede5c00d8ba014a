"""A guard for single FastAPI routes: a dependency whose value is the `Verification`. Needs the extra ``fastapi``.

::

    @app.get("/orders")
    async def orders(caller: Annotated[Verification, Depends(RequireKey(verifier, "orders:read"))]): ...

When the key stops being valid, the guard closes a WebSocket. A dependency cannot break off a response that is being
streamed. This middleware does it for all of them::

    app.add_middleware(tumbler.guards.asgi.EndStreams)
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from fastapi import HTTPException, WebSocketException
from fastapi.openapi.models import HTTPBearer
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase
from fastapi.websockets import WebSocket

from tumbler import aio
from tumbler.guards import asgi
from tumbler.guards._asgi import STREAM, Opening, closing_code
from tumbler.guards._rules import (
    KEY_REQUIRED,
    Refusal,
    Rules,
    decoded,
    presented_key,
    refusal_for_error,
    refusal_for_verdict,
)
from tumbler.guards._streams import Streams
from tumbler.projects import ProjectId
from tumbler.verification import Verification

__all__ = ["RequireKey", "peer_address"]


def peer_address(request: HTTPConnection) -> str | None:
    """Return the IP address of the peer, or None if it has none."""
    return asgi.peer_address(request.scope)


class RequireKey(SecurityBase):
    """Lets a request pass only with a key that the verifier accepts, and gives the route the key's identity.

    It refuses with FastAPI's own `HTTPException`, whose body is ``{"detail": "…"}`` unless the application changes it,
    or before a WebSocket with a `WebSocketException`. The OpenAPI description shows that a key is needed.
    """

    def __init__(
        self,
        verifier: aio.Verifier,
        *scopes: str,
        scopes_of: Callable[[HTTPConnection], Iterable[str] | None] | None = None,
        client_ip: Callable[[HTTPConnection], str | None] = peer_address,
        environment_id: str | None = None,
        project_id: ProjectId | None = None,
        end_streams: bool = True,
    ) -> None:
        """Create a dependency.

        Args:
            verifier: Verifies every key.
            scopes: Scopes that a key must grant, all of them.
            scopes_of: Returns these scopes for a request, instead. None: the request is refused, whatever the key.
            client_ip: Returns the address of a request, if not the peer's: behind a proxy, what the proxy says.
            environment_id: The environment that keys must belong to. Default: any.
            project_id: A project, or several: keys must belong to one of them. This narrows what the verifier accepts,
                and never widens it. Default: what the verifier accepts.
            end_streams: End what a key let in when the key stops being valid: WebSockets, with code 1008, and behind
                `tumbler.guards.asgi.EndStreams` responses sent in parts.

        """
        if scopes and scopes_of is not None:
            raise TypeError("scopes_of: cannot be combined with scopes")
        self._verifier = verifier
        self._rules = Rules(scopes_of or scopes, client_ip, environment_id, project_id)
        self._streams = Streams(verifier, end_streams)
        self.model = HTTPBearer(description="An API key; the header `x-api-key` works too")
        self.scheme_name = "ApiKey"

    async def __call__(self, request: HTTPConnection) -> Verification:
        """Return the verification of the request's key. Raises `HTTPException` or `WebSocketException`."""
        refusal, since = KEY_REQUIRED, self._streams.change_count
        try:
            key = presented_key(decoded(request.scope["headers"]))
            if key is not None:
                arguments = self._rules.arguments(key, request)
                verification = await self._verifier.verify(**arguments)
                refused = refusal_for_verdict(verification)
                if refused is None:
                    self._let_in(request, lambda ended: self._streams.hold(arguments, verification, since, ended))
                    return verification
                refusal = refused
        except Exception as error:
            refusal = refusal_for_error(error)
        if request.scope["type"] == "websocket":
            raise WebSocketException(closing_code(refusal), refusal.text)
        raise HTTPException(refusal.http, refusal.text, refusal.headers)

    def _let_in(self, request: HTTPConnection, opening: Opening) -> None:
        stream, task = request.scope.get(STREAM), asyncio.current_task()
        if stream is not None:
            stream.let_in(opening)
        elif isinstance(request, WebSocket) and task is not None:
            closing: list[asyncio.Task[None]] = []
            session = opening(lambda refusal: closing.append(asyncio.ensure_future(_close(request, refusal))))
            if session is not None:
                task.add_done_callback(lambda _: session.close())


async def _close(socket: WebSocket, refusal: Refusal) -> None:
    with contextlib.suppress(Exception):  # already closed
        await socket.close(closing_code(refusal), refusal.text)
