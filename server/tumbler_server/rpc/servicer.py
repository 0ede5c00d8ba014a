"""The service's RPCs, a few lines each: read the request, call the domain, build the answer."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from tumbler.decide import Code
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer
from tumbler_server import calls, metrics
from tumbler_server.clock import SECOND
from tumbler_server.errors import Overloaded
from tumbler_server.keys import access
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.record import Key
from tumbler_server.keys.rotation import Rotations
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.webhook_admin import WebhookAdmin
from tumbler_server.rpc import auth, counting, requests, responses, status
from tumbler_server.rpc.watch import WatchQuery
from tumbler_server.secrets.opaque_tokens import OpaqueTokens
from tumbler_server.store.database import Transaction
from tumbler_server.verify.verifier import Question, Verdict, Verifier

Response = TypeVar("Response")
Answer = Callable[["Servicer", Any, Any], Response]

_RESTARTS = 2
"""Maximum number of times that a call's work restarts because its caller's scopes have changed."""


class _CallerChanged(Exception):
    """The caller's scopes have changed since it was admitted."""

    def __init__(self, standing: Key) -> None:
        super().__init__(standing.id)
        self.standing = standing


_COUNTED = {code: metrics.VERDICTS.labels(code.name.lower()) for code in Code if code}


def rpc(method: Answer[Response]) -> Callable[["Servicer", Any, grpc.ServicerContext], Response]:
    """Make an RPC of a method that takes the calling key and the request.

    ``answer`` of the RPC is the method itself. ``rpc.engine``, which has admitted the caller, calls it on a thread of
    the RPC's lane. The RPC itself authenticates the caller first and maps exceptions to statuses, so grpcio-testing or
    any threaded gRPC server can call it.
    """
    name = method.__name__

    @functools.wraps(method)
    def handler(self: "Servicer", request: Any, context: grpc.ServicerContext) -> Response:
        failed: Exception
        try:
            caller = self.admit(context, name)
            counting.demand(request)
            address = functools.partial(_address, context)
            named = getattr(request, "request_id", "").lower() or auth.named(context.invocation_metadata() or ())
            return self.work(name, method, caller, request, calls.Call(peer=address, request_id=named))
        except Exception as failure:
            failed = failure
        # Outside the except block, so that the exception which gRPC raises to end the call does not refer to the
        # failure.
        return status.abort(context, failed, name)

    handler.answer = method  # type: ignore[attr-defined]  # engine takes the work from here, without gRPC around it
    return handler


def _address(context: grpc.ServicerContext) -> str:
    try:
        return auth.peer_address(context.peer())
    except NotImplementedError:  # grpcio-testing's context has no peer
        return ""


class Servicer(ApiKeyServiceServicer):
    """The RPCs of ``ApiKeyService``. ``cache_ttl`` is how long clients may cache an answer, in microseconds."""

    def __init__(
        self,
        verifier: Verifier,
        lifecycle: Lifecycle,
        rotations: Rotations,
        listing: Listing,
        trail: Trail,
        tokens: OpaqueTokens,
        webhook_admin: WebhookAdmin,
        cache_ttl: int,
    ) -> None:
        self.verifier = verifier
        self._lifecycle = lifecycle
        self._rotations = rotations
        self._listing = listing
        self._trail = trail
        self._tokens = tokens
        self._webhook_admin = webhook_admin
        self._cache_ttl = cache_ttl

    def admit(self, context: grpc.ServicerContext, method: str) -> Key:
        """Return the calling key, or ``NOBODY`` for an RPC that carries its own credential.

        Raises ``Unauthenticated`` and ``ScopeMissing``.
        """
        if auth.POLICY[method] == auth.OPEN:
            return auth.NOBODY
        text = auth.credential(context.invocation_metadata() or ())
        _, now, _, key, _ = self.verifier.verify(Question(text))
        return auth.admit(key, method, now, lambda: auth.peer_address(context.peer()))

    def work(self, name: str, method: Answer[Response], caller: Key, request: Any, call: calls.Call) -> Response:
        """Do the work of a call, on the current thread.

        Each write transaction checks the caller again, by its record in that transaction. If the caller's scopes have
        changed since it was admitted, the work restarts with the new record, which limits the scopes that the caller
        may grant.

        Raises what ``method`` does, and ``Overloaded`` if the scopes change each time.
        """
        for _ in range(_RESTARTS + 1):
            if caller is not auth.NOBODY:
                call.judge = functools.partial(self._judge, name, caller, call.address)
            try:
                with calls.serving(call):
                    return method(self, caller, request)
            except _CallerChanged as changed:
                caller = changed.standing
        raise Overloaded(SECOND, "the calling key's scopes change too often")

    def _judge(self, name: str, caller: Key, address: Callable[[], str], transaction: Transaction) -> None:
        standing = auth.admit(access.standing(transaction, caller), name, self.verifier.now(), address)
        if standing.scopes != caller.scopes:
            raise _CallerChanged(standing)

    def read_claim(self, token: str) -> None:
        """Raise ``ClaimTokenInvalid`` unless this is a claim token of this installation."""
        self._rotations.read_claim(token)

    def question(self, caller: Key, request: pb.VerifyRequest) -> Question:
        """Return what a Verify asks. Raises ``InvalidFields`` and ``OtherProject``."""
        return requests.question(caller, request, self._tokens)

    def questions(self, caller: Key, request: pb.BatchVerifyRequest) -> Iterator[Question | None]:
        """Yield what a BatchVerify asks. Raises ``InvalidFields``."""
        return requests.questions(caller, request, self._tokens)

    def wanted(self, caller: Key, request: pb.WatchRequest) -> WatchQuery:
        """Return what a Watch asks for. Raises ``InvalidFields`` and ``OtherProject``."""
        return requests.watch(caller, request, self._tokens)

    def verdict(self, outcome: Verdict) -> bytes:
        """Return a verdict as a serialized VerifyResponse, and count it."""
        _COUNTED[outcome.code].inc()
        return responses.verdict(outcome, self._cache_ttl, self._tokens.consistency)

    def verdicts(self, outcomes: Sequence[Verdict | None]) -> Iterator[bytes]:
        """Yield verdicts as the parts of a serialized BatchVerifyResponse, and count them."""
        for code, count in Counter(outcome.code for outcome in outcomes if outcome is not None).items():
            _COUNTED[code].inc(count)
        return responses.verdicts(outcomes, self._cache_ttl, self._tokens.consistency)

    @rpc
    def Create(self, caller: Key, request: pb.CreateRequest) -> pb.CreateResponse:
        """Create a key."""
        issued = self._lifecycle.create(caller, requests.draft(request))
        return pb.CreateResponse(
            api_key=responses.api_key(issued.key, issued.now),
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision) if issued.revision else "",
            secret_omitted=issued.repeated,
            webhook_secret=issued.webhook_secret,
        )

    @rpc
    def Get(self, caller: Key, request: pb.GetRequest) -> pb.GetResponse:
        """Read a key."""
        found = self._lifecycle.get(caller, request.key_id)
        return pb.GetResponse(api_key=responses.api_key(found.key, found.now))

    @rpc
    def List(self, caller: Key, request: pb.ListRequest) -> pb.ListResponse:
        """Read a page of keys."""
        page = self._listing.page(caller, requests.query(request))
        return pb.ListResponse(
            api_keys=[responses.api_key(key, page.now) for key in page.keys],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    @rpc
    def Update(self, caller: Key, request: pb.UpdateRequest) -> pb.UpdateResponse:
        """Change a key."""
        changed = self._lifecycle.update(caller, requests.edit(request))
        return pb.UpdateResponse(
            api_key=responses.api_key(changed.key, changed.now),
            consistency_token=self._tokens.consistency(changed.revision),
            webhook_secret=changed.webhook_secret,
        )

    @rpc
    def SetActive(self, caller: Key, request: pb.SetActiveRequest) -> pb.SetActiveResponse:
        """Enable or disable a key."""
        if request.HasField("by_name"):
            name = request.by_name
            changed = self._lifecycle.set_active_by_name(
                caller, name.project_id, name.environment_id, name.name, request.active
            )
        else:
            changed = self._lifecycle.set_active(caller, request.key_id, request.active)
        return pb.SetActiveResponse(
            api_key=responses.api_key(changed.key, changed.now),
            consistency_token=self._tokens.consistency(changed.revision),
        )

    @rpc
    def Revoke(self, caller: Key, request: pb.RevokeRequest) -> pb.RevokeResponse:
        """Revoke a key."""
        changed = self._lifecycle.revoke(caller, request.key_id, request.reason, request.comment)
        return pb.RevokeResponse(
            api_key=responses.api_key(changed.key, changed.now),
            consistency_token=self._tokens.consistency(changed.revision),
        )

    @rpc
    def Rotate(self, caller: Key, request: pb.RotateRequest) -> pb.RotateResponse:
        """Rotate a key."""
        issued = self._rotations.rotate(caller, requests.rotation(request))
        return pb.RotateResponse(
            api_key=responses.api_key(issued.key, issued.now),
            old_api_key=responses.api_key(issued.old, issued.now) if issued.old else None,
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision),
            secret_omitted=issued.repeated,
        )

    @rpc
    def Verify(self, caller: Key, request: pb.VerifyRequest) -> pb.VerifyResponse:
        """Verify a key."""
        return pb.VerifyResponse.FromString(self.verdict(self.verifier.verify(self.question(caller, request))))

    @rpc
    def BatchVerify(self, caller: Key, request: pb.BatchVerifyRequest) -> pb.BatchVerifyResponse:
        """Verify many keys."""
        questions = self.questions(caller, request)
        outcomes = [question and self.verifier.verify(question) for question in questions]
        return pb.BatchVerifyResponse.FromString(b"".join(self.verdicts(outcomes)))

    @rpc
    def ListEvents(self, caller: Key, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        """Read a page of the audit log."""
        page = self._trail.page(caller, requests.event_query(request))
        return pb.ListEventsResponse(
            events=[responses.event(event) for event in page.events], next_page_token=page.next_page_token
        )

    @rpc
    def ClaimRotation(self, caller: Key, request: pb.ClaimRotationRequest) -> pb.ClaimRotationResponse:  # noqa: ARG002
        """Rotate a key whose rotation is due."""
        issued = self._rotations.claim(request.claim_token, requests.grace(request), request.old_key_ends)
        return pb.ClaimRotationResponse(
            api_key=responses.api_key(issued.key, issued.now),
            old_api_key=responses.api_key(issued.old, issued.now) if issued.old else None,
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision),
        )

    @rpc
    def ListDeliveries(self, caller: Key, request: pb.ListDeliveriesRequest) -> pb.ListDeliveriesResponse:
        """Read a page of deliveries."""
        page = self._webhook_admin.page(caller, requests.delivery_query(request))
        return pb.ListDeliveriesResponse(
            deliveries=[responses.delivery(row) for row in page.deliveries], next_page_token=page.next_page_token
        )

    @rpc
    def Redeliver(self, caller: Key, request: pb.RedeliverRequest) -> pb.RedeliverResponse:
        """Send a webhook again."""
        row = self._webhook_admin.redeliver(caller, request.delivery_id)
        return pb.RedeliverResponse(delivery=responses.delivery(row))

    @rpc
    def RotateWebhookSecret(
        self, caller: Key, request: pb.RotateWebhookSecretRequest
    ) -> pb.RotateWebhookSecretResponse:
        """Replace the secret of a webhook's URL."""
        replaced = self._webhook_admin.replace_secret(caller, request.project_id, request.webhook_url)
        return pb.RotateWebhookSecretResponse(
            webhook_secret=replaced.text, previous_expire_time=responses.timestamp(replaced.previous_expire_time)
        )
