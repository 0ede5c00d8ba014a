"""Authentication and authorization: one table says which scope each RPC needs."""

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

from google.protobuf.descriptor import ServiceDescriptor

from tumbler.credential import credential_in
from tumbler.decide import Code, Demand, any_grants, decide
from tumbler_server.errors import ScopeMissing, SetupError, Unauthenticated
from tumbler_server.keys.record import Key

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

NOBODY = Key(id="", project_id="")
"""The caller of an RPC that carries its own credential: it sees no project and holds no scope."""

_LONGEST_ID = 128


def check_policy(service: ServiceDescriptor, policy: Mapping[str, str] = POLICY) -> None:
    """Raise ``SetupError`` unless the table has exactly one row for each RPC of the service."""
    methods = {method.name for method in service.methods}
    if missing := sorted(methods - policy.keys()):
        raise SetupError(f"no policy says who may call {', '.join(missing)}: add a row to rpc.auth.POLICY")
    if unknown := sorted(policy.keys() - methods):
        raise SetupError(f"rpc.auth.POLICY names RPCs that do not exist: {', '.join(unknown)}")


def credential(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the key that came with a call. Raises ``Unauthenticated`` if there is none, or more than one."""
    found = credential_in(metadata)
    if not isinstance(found, str):
        raise Unauthenticated
    return found


def admit(key: Key | Code | None, method: str, now: int, address: Callable[[], str]) -> Key:
    """Return the caller's record, if it may call the method.

    ``address`` is called only if the key has allowed networks: it costs more than the rest of this function.
    Raises ``Unauthenticated`` and ``ScopeMissing``.
    """
    if key is None or isinstance(key, Code):
        raise Unauthenticated
    code = decide(key, Demand(), now)
    if code is Code.IP_NOT_ALLOWED:
        code = decide(key, Demand(client_ip=address()), now)
    if code is not Code.VALID:
        raise Unauthenticated
    scope = POLICY[method]
    if scope not in key.scopes and not any_grants(key.scopes, scope):
        raise ScopeMissing(scope)
    return key


def named(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return a call's ``x-request-id`` header, or an empty text if it is missing, too long or not printable."""
    for name, value in metadata:
        if name == "x-request-id" and isinstance(value, str) and len(value) <= _LONGEST_ID and value.isprintable():
            return value
    return ""


def peer_address(peer: str) -> str:
    """Return the IP address in gRPC's name of a peer, or an empty text.

    The names look like ``ipv4:192.0.2.1:443`` and ``ipv6:%5B::1%5D:443``.
    """
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest).rpartition(":")[0].strip("[]")
