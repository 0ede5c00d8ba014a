"""The parts that the two gRPC interceptors share."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import unquote

import grpc

from tumbler.guards._rules import Refusal, Rules, Scopes, address_or_none, presented_key
from tumbler.guards._streams import Streams
from tumbler.projects import ProjectId
from tumbler.verification import Verification

identity: ContextVar[Verification | None] = ContextVar("tumbler_identity", default=None)

HANDLER_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""What a handler is called and made with, by whether requests and responses stream."""


class Call(NamedTuple):
    """A call, as passed to a guard's functions."""

    method: str
    """Its full name, ``/package.Service/Method``."""
    peer: str
    """The peer, as gRPC writes it: ``ipv4:192.0.2.7:51234``."""
    metadata: dict[str, str | bytes]
    """The first metadata value of each name. It includes keys: do not log it as a whole."""


def current() -> Verification:
    """Return the verification of the key that let the present call pass. For handlers behind a guard.

    Raises:
        LookupError: No guard let this call pass: the method is exempt, or there is no guard.

    """
    found = identity.get()
    if found is None:
        raise LookupError("no guard has accepted this call")
    return found


def peer_address(call: Call) -> str | None:
    """Return the IP address of the peer, or None for a Unix socket."""
    scheme, _, rest = call.peer.partition(":")
    if scheme == "ipv4":
        return address_or_none(rest.rpartition(":")[0])
    if scheme == "ipv6":
        return address_or_none(unquote(rest).rpartition("]:")[0].removeprefix("["))
    return None


def health_and_reflection(method: str) -> bool:
    """Return whether a method belongs to gRPC's health or reflection service. Often passed as ``exempt``."""
    return method.startswith(("/grpc.health.v1.", "/grpc.reflection."))


class Guard:
    """The options of an interceptor, and the arguments that it verifies a call with."""

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
        """Create an interceptor.

        Args:
            verifier: Verifies every key.
            scopes: Scopes that a key must grant: the same for all methods, or a function of the `Call`. A call for
                which it returns None is refused, whatever the key.
            exempt: Methods that need no key: their full names (``/package.Service/Method``), or a function of the name,
                `health_and_reflection` for example. Nothing is exempt by default.
            client_ip: Returns the address of a call, if not the peer's: behind a proxy, what the proxy says.
            environment_id: The environment that keys must belong to. Default: any.
            project_id: A project, or several: keys must belong to one of them. This narrows what the verifier accepts,
                and never widens it. Default: what the verifier accepts.
            end_streams: End calls that stream in either direction when their key stops being valid, with the status
                that a new call would get. A unary call runs to its end.

        """
        if isinstance(exempt, str):
            raise TypeError("exempt: must be a sequence of methods, or a function of the method, not one string")
        self._verifier = verifier
        self._rules = Rules(scopes, client_ip, environment_id, project_id)
        self._streams = Streams(verifier, end_streams)
        self._exempt = exempt if callable(exempt) else frozenset(exempt).__contains__

    def _verify_arguments(self, method: str, context: Any) -> dict[str, Any] | None:
        """Return the arguments of ``verify``, or None if there is no key."""
        metadata = [(str(name), value) for name, value in context.invocation_metadata() or ()]
        key = presented_key(metadata)
        if key is None:
            return None
        return self._rules.arguments(key, Call(method, context.peer(), dict(reversed(metadata))))


def status_of(refusal: Refusal) -> grpc.StatusCode:
    """Return the gRPC status of a refusal."""
    return grpc.StatusCode[refusal.grpc]
