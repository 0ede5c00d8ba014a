"""Who may call what: one table, and the proof of the caller."""

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from tumbler_server.errors import ScopeMissing, SetupError, Unauthenticated
from tumbler_server.keys.decide import Code, Demand, decide
from tumbler_server.keys.record import Key
from tumbler_server.keys.scopes import any_grants
from tumbler_server.keys.verifier import Verifier

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


def authenticate(verifier: Verifier, context: grpc.ServicerContext, method: str) -> Key | None:
    """Return the key that makes the call; None for an RPC that needs none.

    Raises ``Unauthenticated`` and ``ScopeMissing``.
    """
    scope = POLICY[method]
    if scope == OPEN:
        return None
    text = _credential(context.invocation_metadata() or ())
    if not text:
        raise Unauthenticated
    verdict = verifier.verify(text, Demand())
    key, code = verdict.key, verdict.code
    if code is Code.IP_NOT_ALLOWED:
        # The peer is asked for only where it matters: that costs more than the rest of this function.
        code = decide(key, Demand(client_ip=peer_address(context.peer())), verdict.time)
    if key is None or code is not Code.VALID:
        raise Unauthenticated
    if not any_grants(key.scopes, scope):
        raise ScopeMissing(scope)
    return key


def peer_address(peer: str) -> str:
    """Return the IP address in gRPC's name of a peer (``ipv4:192.0.2.1:443``, ``ipv6:%5B::1%5D:443``), or nothing."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")


def _credential(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the key that came with a call: that of ``authorization``, else that of ``x-api-key``, else nothing."""
    sent = {name: value for name, value in metadata if isinstance(value, str)}
    authorization = sent.get("authorization")
    if authorization is None:
        return sent.get("x-api-key", "")
    if authorization[: len(_BEARER)].lower() != _BEARER:
        return ""
    return authorization[len(_BEARER) :].strip()
