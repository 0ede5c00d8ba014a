"""The service's RPCs, a few lines each: read, ask the domain, answer."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer
from tumbler_server.errors import NotOffered, Undecodable
from tumbler_server.keys import access
from tumbler_server.keys.decide import Demand
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.record import Key
from tumbler_server.keys.rules import Check
from tumbler_server.keys.tokens import Tokens
from tumbler_server.keys.verifier import Verifier
from tumbler_server.rpc import auth, reading, status, wire

Response = TypeVar("Response")


class Broken:
    """What the deserializer makes of bytes that are no message: the handler turns it into a status."""

    def __init__(self, message_type: str) -> None:
        self.message_type = message_type


def rpc(method: Callable[["Servicer", Any, Any], Response]) -> Callable[["Servicer", Any, Any], Response]:
    """Make a method that takes the caller and the request into an RPC: prove the caller, map what goes wrong.

    A decorator and not an interceptor, since tests that call the servicer run no interceptors.
    """

    @functools.wraps(method)
    def handler(self: "Servicer", request: Any, context: grpc.ServicerContext) -> Response:
        failed: Exception
        try:
            caller = auth.authenticate(self.verifier, context, method.__name__)
            if isinstance(request, Broken):
                raise Undecodable(request.message_type)
            return method(self, caller, request)
        except Exception as failure:
            failed = failure
        # Outside, so that what gRPC raises to end the call does not drag the failure's text along.
        return status.abort(context, failed, method.__name__)

    return handler


class Servicer(ApiKeyServiceServicer):
    """The RPCs of ``ApiKeyService``. ``cache_ttl`` is what clients are allowed, in microseconds."""

    def __init__(
        self, verifier: Verifier, lifecycle: Lifecycle, listing: Listing, tokens: Tokens, cache_ttl: int
    ) -> None:
        self.verifier = verifier
        self._lifecycle = lifecycle
        self._listing = listing
        self._tokens = tokens
        self._cache_ttl = cache_ttl

    @rpc
    def Create(self, caller: Key, request: pb.CreateRequest) -> pb.CreateResponse:
        """Make a key."""
        issued = self._lifecycle.create(caller, reading.draft(request))
        return pb.CreateResponse(
            api_key=wire.api_key(issued.key, issued.now),
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision) if issued.revision else "",
            secret_omitted=issued.repeated,
        )

    @rpc
    def Get(self, caller: Key, request: pb.GetRequest) -> pb.GetResponse:
        """Read a key."""
        found = self._lifecycle.get(caller, request.key_id)
        return pb.GetResponse(api_key=wire.api_key(found.key, found.now))

    @rpc
    def List(self, caller: Key, request: pb.ListRequest) -> pb.ListResponse:
        """Read a page of keys."""
        page = self._listing.page(caller, reading.query(request))
        return pb.ListResponse(
            api_keys=[wire.api_key(key, page.now) for key in page.keys],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    @rpc
    def Update(self, caller: Key, request: pb.UpdateRequest) -> pb.UpdateResponse:
        """Change a key."""
        changed = self._lifecycle.update(caller, reading.edit(request))
        return pb.UpdateResponse(
            api_key=wire.api_key(changed.key, changed.now),
            consistency_token=self._tokens.consistency(changed.revision),
        )

    @rpc
    def SetActive(self, caller: Key, request: pb.SetActiveRequest) -> pb.SetActiveResponse:
        """Switch a key on or off."""
        if request.HasField("by_name"):
            name = request.by_name
            changed = self._lifecycle.set_active_by_name(
                caller, name.project_id, name.environment_id, name.name, request.active
            )
        else:
            changed = self._lifecycle.set_active(caller, request.key_id, request.active)
        return pb.SetActiveResponse(
            api_key=wire.api_key(changed.key, changed.now),
            consistency_token=self._tokens.consistency(changed.revision),
        )

    @rpc
    def Revoke(self, caller: Key, request: pb.RevokeRequest) -> pb.RevokeResponse:
        """End a key."""
        changed = self._lifecycle.revoke(caller, request.key_id, request.reason, request.comment)
        return pb.RevokeResponse(
            api_key=wire.api_key(changed.key, changed.now),
            consistency_token=self._tokens.consistency(changed.revision),
        )

    @rpc
    def Rotate(self, caller: Key, request: pb.RotateRequest) -> pb.RotateResponse:
        """Replace a key."""
        issued = self._lifecycle.rotate(caller, reading.rotation(request))
        return pb.RotateResponse(
            api_key=wire.api_key(issued.key, issued.now),
            old_api_key=wire.api_key(issued.old, issued.now) if issued.old else None,
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision),
            secret_omitted=issued.repeated,
        )

    @rpc
    def Verify(self, caller: Key, request: pb.VerifyRequest) -> pb.VerifyResponse:
        """Give the verdict on a key."""
        check = Check()
        check.filter("project_id", request.project_id)
        check.filter("environment_id", request.environment_id)
        required = check.required_scopes("required_scopes", request.required_scopes)
        check.address("client_ip", request.client_ip)
        check.done()
        demand = Demand(
            project_id=access.scope_of(caller, request.project_id),
            environment_id=request.environment_id,
            required_scopes=required,
            client_ip=request.client_ip,
        )
        wanted = request.consistency
        at_least = self._tokens.revision(wanted.at_least_as_fresh) if wanted.HasField("at_least_as_fresh") else 0
        outcome = self.verifier.verify(request.key, demand, at_least)
        return wire.verdict(outcome, self._cache_ttl, self._tokens.consistency(outcome.revision))

    @rpc
    def BatchVerify(self, caller: Key, request: pb.BatchVerifyRequest) -> pb.BatchVerifyResponse:  # noqa: ARG002
        """Not offered yet."""
        raise NotOffered("BatchVerify")

    @rpc
    def Watch(self, caller: Key, request: pb.WatchRequest) -> pb.WatchResponse:  # noqa: ARG002
        """Not offered yet."""
        raise NotOffered("Watch")

    @rpc
    def ListEvents(self, caller: Key, request: pb.ListEventsRequest) -> pb.ListEventsResponse:  # noqa: ARG002
        """Not offered yet."""
        raise NotOffered("ListEvents")

    @rpc
    def ClaimRotation(self, caller: None, request: pb.ClaimRotationRequest) -> pb.ClaimRotationResponse:  # noqa: ARG002
        """Not offered yet."""
        raise NotOffered("ClaimRotation")
