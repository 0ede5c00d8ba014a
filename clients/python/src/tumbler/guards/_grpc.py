"""What the two interceptors of gRPC have in common."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc

from tumbler.guards._rules import Refusal, Rules, Scopes, address_or_none, key_in
from tumbler.guards._streams import Streams
from tumbler.projects import ProjectId
from tumbler.verification import Verification

identity: ContextVar[Verification | None] = ContextVar("tumbler_identity", default=None)


class Call(NamedTuple):
    """What a guard's functions are told of a call."""

    method: str
    """Its full name, ``/package.Service/Method``."""
    peer: str
    """Where it comes from, as gRPC writes it: ``ipv4:192.0.2.7:51234``."""
    metadata: dict[str, str | bytes]
    """What came with it, the first of each name; keys among it: do not log it whole."""


def current() -> Verification:
    """Return whose key let the present call pass. For handlers behind a guard.

    Raises:
        LookupError: No guard let this call pass: the method is exempt, or there is none.

    """
    found = identity.get()
    if found is None:
        raise LookupError("no guard has accepted this call")
    return found


def peer_address(call: Call) -> str | None:
    """Return the address that a call comes from; None for a Unix socket."""
    scheme, _, rest = call.peer.partition(":")
    if scheme == "ipv4":
        return address_or_none(rest.rpartition(":")[0])
    if scheme == "ipv6":
        return address_or_none(unquote(rest).rpartition("]:")[0].removeprefix("["))
    return None


def health_and_reflection(method: str) -> bool:
    """Say whether a method belongs to gRPC's own health or reflection service: what ``exempt`` is often given."""
    return method.startswith(("/grpc.health.v1.", "/grpc.reflection."))


class Guard:
    """The options of an interceptor, and what it makes of a call."""

    def __init__(
        self,
        verifier: Any,
        scopes: Scopes[Call] = (),
        *,
        exempt: Callable[[str], bool] | Iterable[str] = (),
        client_ip: Callable[[Call], str | None] = peer_address,
        environment_id: str | None = None,
        project_id: ProjectId | None = None,
        end_streams: bool = True,
    ) -> None:
        """Make an interceptor.

        Args:
            verifier: Asked about every key.
            scopes: What a key must grant: for all methods the same, or a function of the `Call`.
            exempt: Which methods need no key, by their full names (``/package.Service/Method``), or a function of them,
                `health_and_reflection` for example. None is exempt by itself.
            client_ip: Where a call comes from, if not from the peer: behind a proxy, what the proxy says.
            environment_id: The environment that keys must belong to; left out: any.
            project_id: The project, or several, that keys must belong to one of; left out: those that the verifier
                accepts. It narrows these, and never widens them.
            end_streams: End calls that stream, either way, when their key stops being valid, with the status that a new
                call would get. A unary call runs to its end.

        """
        if isinstance(exempt, str):
            raise TypeError("exempt: must be a sequence of methods, or a function of the method, not one string")
        self._verifier = verifier
        self._rules = Rules(scopes, client_ip, environment_id, project_id)
        self._streams = Streams(verifier, end_streams)
        self._exempt = exempt if callable(exempt) else frozenset(exempt).__contains__

    def _question(self, method: str, context: Any) -> dict[str, Any] | None:
        """Return the arguments of ``verify``; None: there is no key."""
        metadata = [(str(name), value) for name, value in context.invocation_metadata() or ()]
        key = key_in(metadata)
        if key is None:
            return None
        return self._rules.arguments(key, Call(method, context.peer(), dict(reversed(metadata))))


def status_of(refusal: Refusal) -> grpc.StatusCode:
    """Return the refusal's gRPC status."""
    return grpc.StatusCode[refusal.grpc]
