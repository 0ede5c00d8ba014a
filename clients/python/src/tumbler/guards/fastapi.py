"""A guard for single routes of FastAPI: a dependency whose value is the `Verification`. It needs the extra ``fastapi``.

::

    @app.get("/orders")
    async def orders(caller: Annotated[Verification, Depends(RequireKey(verifier, "orders:read"))]): ...
"""

from collections.abc import Callable, Iterable

from fastapi import HTTPException, WebSocketException
from fastapi.openapi.models import HTTPBearer
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from tumbler import aio
from tumbler.guards import asgi
from tumbler.guards._rules import NO_KEY, Rules, decoded, key_in, refusal_after, refusal_of
from tumbler.projects import ProjectId
from tumbler.verification import Verification

__all__ = ["RequireKey", "peer_address"]


def peer_address(request: HTTPConnection) -> str | None:
    """Return the address that a request comes from; None where it comes from none."""
    return asgi.peer_address(request.scope)


class RequireKey(SecurityBase):
    """Lets a request pass only with a key that the verifier says yes to; the route is told whose it is.

    A refusal is FastAPI's own: an `HTTPException`, whose body is ``{"detail": "…"}`` unless the application says
    otherwise, or before a WebSocket a `WebSocketException`. The API's description shows that a key is needed.
    """

    def __init__(
        self,
        verifier: aio.Verifier,
        *scopes: str,
        scopes_of: Callable[[HTTPConnection], Iterable[str]] | None = None,
        client_ip: Callable[[HTTPConnection], str | None] = peer_address,
        environment_id: str | None = None,
        project_id: ProjectId | None = None,
    ) -> None:
        """Make a dependency.

        Args:
            verifier: Asked about every key.
            scopes: What a key must grant, all of it.
            scopes_of: The same as a function of the request, instead.
            client_ip: Where a request comes from, if not from the peer: behind a proxy, what the proxy says.
            environment_id: The environment that keys must belong to; left out: any.
            project_id: The project, or several, that keys must belong to one of; left out: those that the verifier
                accepts. It narrows these, and never widens them.

        """
        if scopes and scopes_of is not None:
            raise TypeError("scopes_of: the scopes are given already")
        self._verifier = verifier
        self._rules = Rules(scopes_of or scopes, client_ip, environment_id, project_id)
        self.model = HTTPBearer(description="An API key, also taken from `x-api-key`")
        self.scheme_name = "ApiKey"

    async def __call__(self, request: HTTPConnection) -> Verification:
        """Return whose key it is. Raises `HTTPException` or `WebSocketException`."""
        refusal = NO_KEY
        try:
            key = key_in(decoded(request.scope["headers"]))
            if key is not None:
                told = await self._verifier.verify(**self._rules.arguments(key, request))
                refused = refusal_of(told)
                if refused is None:
                    return told
                refusal = refused
        except Exception as error:
            refusal = refusal_after(error)
        if request.scope["type"] == "websocket":
            raise WebSocketException(asgi.closing_code(refusal), refusal.text)
        raise HTTPException(refusal.http, refusal.text, refusal.headers)
