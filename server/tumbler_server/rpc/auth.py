"""Who may call what: one table, and the proof of the caller."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from tumbler.decide import Code, Demand, any_grants, decide
from tumbler_server.errors import ScopeMissing, SetupError, Unauthenticated
from tumbler_server.keys.record import Key
from tumbler_server.keys.verifier import Question, Verifier, View

OPEN = ""
"""The policy of an RPC that carries its own credential."""

POLICY: Mapping[str, str] = {
    "Create": "tumbler:keys:create",
    "Get": "tumbler:keys:read",
    "List": "tumbler:keys:read",
    "Update": "tumbler:keys:update",
    "SetActive": "tumbler:keys:update",
    "Revoke": "tumbler:keys:revoke",
    "Rotate": "tumbler:keys:rotate",
    "Verify": "tumbler:keys:verify",
    "BatchVerify": "tumbler:keys:verify",
    "Watch": "tumbler:keys:verify",
    "ListEvents": "tumbler:events:read",
    "ClaimRotation": OPEN,  # the claim token is its only credential
    "ListDeliveries": "tumbler:events:read",
    "Redeliver": "tumbler:keys:update",
    "RotateWebhookSecret": "tumbler:keys:update",
}
"""Each RPC, and the scope that a caller needs for it."""

_BEARER = "bearer "


def check_policy(service: ServiceDescriptor, policy: Mapping[str, str] = POLICY) -> None:
    """Raise ``SetupError`` unless the table has exactly one row for each RPC of the service."""
    methods = {method.name for method in service.methods}
    if missing := sorted(methods - policy.keys()):
        raise SetupError(f"no policy says who may call {', '.join(missing)}: add a row to rpc.auth.POLICY")
    if unknown := sorted(policy.keys() - methods):
        raise SetupError(f"rpc.auth.POLICY names RPCs that do not exist: {', '.join(unknown)}")


class Caller(NamedTuple):
    """The key that makes a call, and the view by which it was proven."""

    key: Key
    view: View


def authenticate(verifier: Verifier, context: grpc.ServicerContext, method: str) -> Caller | None:
    """Return who makes the call; None for an RPC that needs nobody in particular.

    Raises ``Unauthenticated`` and ``ScopeMissing``.
    """
    scope = POLICY[method]
    if scope == OPEN:
        return None
    text = _credential(context.invocation_metadata() or ())
    if not text:
        raise Unauthenticated
    code, time, view, key = verifier.verify(Question(text))
    if code is Code.IP_NOT_ALLOWED:
        # The peer is asked for only where it matters: that costs more than the rest of this function.
        code = decide(key, Demand(client_ip=peer_address(context.peer())), time)
    if key is None or code is not Code.VALID:
        raise Unauthenticated
    if not any_grants(key.scopes, scope):
        raise ScopeMissing(scope)
    return Caller(key, view)


def check_again(key: Key, address: str, method: str, now: int) -> None:
    """Raise what ``authenticate`` would, if a caller that it has let in would not be let in any more."""
    if decide(key, Demand(client_ip=address), now) is not Code.VALID:
        raise Unauthenticated
    if not any_grants(key.scopes, POLICY[method]):
        raise ScopeMissing(POLICY[method])


def peer_address(peer: str) -> str:
    """Return the IP address in gRPC's name of a peer (``ipv4:192.0.2.1:443``, ``ipv6:%5B::1%5D:443``), or nothing."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")


def _credential(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the key that came with a call: that of ``authorization``, else that of ``x-api-key``, else nothing."""
    authorization: str | bytes | None = None
    api_key: str | bytes = ""
    for name, value in metadata:
        if name == "authorization":
            authorization = value
        elif name == "x-api-key":
            api_key = value
    if authorization is None:
        return api_key if isinstance(api_key, str) else ""
    if not isinstance(authorization, str) or authorization[: len(_BEARER)].lower() != _BEARER:
        return ""
    return authorization[len(_BEARER) :].strip()
