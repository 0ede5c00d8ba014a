"""The service's RPCs, a few lines each: read, ask the domain, answer."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from tumbler.decide import Code
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceServicer
from tumbler_server import metrics
from tumbler_server.errors import Undecodable
from tumbler_server.keys.deliveries import Deliveries
from tumbler_server.keys.lifecycle import Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.record import Key
from tumbler_server.keys.rotation import Rotations
from tumbler_server.keys.tokens import Tokens
from tumbler_server.keys.trail import Trail
from tumbler_server.keys.verifier import Verifier
from tumbler_server.rpc import auth, reading, status, wire
from tumbler_server.rpc.watch import Send, Watching

Response = TypeVar("Response")

_COUNTED = {code: metrics.VERDICTS.labels(code.name.lower()) for code in Code}


class Broken:
    """What the deserializer makes of bytes that are no message: the handler turns it into a status."""

    def __init__(self, message_type: str) -> None:
        self.message_type = message_type


Handler = Callable[["Servicer", Any, Any], Response]


def rpc(method: Callable[["Servicer", Any, Any], Response]) -> Handler[Response]:
    """Make a method that takes the calling key and the request into an RPC."""
    return _guarded(method, lambda self, caller, request: method(self, caller and caller.key, request))


def verification(response: type[Response]) -> Callable[[Callable[["Servicer", Any, Any], bytes]], Handler[Response]]:
    """Make a method that takes the verdict on the caller and the request into an RPC: it goes on from the same view.

    It returns the response as bytes, which a server sends as they are: ``as_bytes`` of the RPC. Whoever calls the RPC
    itself gets the message.
    """

    def made(method: Callable[["Servicer", Any, Any], bytes]) -> Handler[Response]:
        as_bytes = _guarded(method, method)

        @functools.wraps(method)
        def handler(self: "Servicer", request: Any, context: grpc.ServicerContext) -> Response:
            return response.FromString(as_bytes(self, request, context))  # type: ignore[attr-defined, no-any-return]

        handler.as_bytes = as_bytes  # type: ignore[attr-defined]
        return handler

    return made


def stream(method: Callable[["Servicer", Key, Any, grpc.ServicerContext, Send], None]) -> Callable[..., None]:
    """Make a method that takes the calling key, the request and what gRPC gives for sending into an RPC.

    It returns as soon as the stream is open: gRPC takes no thread for as long as that lasts.
    """

    @functools.wraps(method)
    def handler(self: "Servicer", request: Any, context: grpc.ServicerContext, send: Send) -> None:
        def answer(self: "Servicer", caller: auth.Caller | None, request: Any) -> None:
            method(self, caller.key, request, context, send)  # type: ignore[union-attr]  # no policy lets nobody in

        _guarded(method, answer)(self, request, context)

    handler.experimental_non_blocking = True  # type: ignore[attr-defined]
    return handler


def _guarded(
    method: Callable[..., Any], answer: Callable[["Servicer", "auth.Caller | None", Any], Response]
) -> Handler[Response]:
    """Prove the caller before, and map what goes wrong.

    A decorator and not an interceptor, since tests that call the servicer run no interceptors.
    """
    name = method.__name__

    @functools.wraps(method)
    def handler(self: "Servicer", request: Any, context: grpc.ServicerContext) -> Response:
        failed: Exception
        try:
            caller = auth.authenticate(self.verifier, context, name)
            if isinstance(request, Broken):
                raise Undecodable(request.message_type)
            return answer(self, caller, request)
        except Exception as failure:
            failed = failure
        # Outside, so that what gRPC raises to end the call does not drag the failure's text along.
        return status.abort(context, failed, name)

    return handler


class Servicer(ApiKeyServiceServicer):
    """The RPCs of ``ApiKeyService``. ``cache_ttl`` is what clients are allowed, in microseconds."""

    def __init__(
        self,
        verifier: Verifier,
        lifecycle: Lifecycle,
        rotations: Rotations,
        listing: Listing,
        trail: Trail,
        tokens: Tokens,
        watching: Watching,
        deliveries: Deliveries,
        cache_ttl: int,
    ) -> None:
        self.verifier = verifier
        self._lifecycle = lifecycle
        self._rotations = rotations
        self._listing = listing
        self._trail = trail
        self._tokens = tokens
        self._watching = watching
        self._deliveries = deliveries
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
            webhook_secret=issued.webhook_secret,
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
            webhook_secret=changed.webhook_secret,
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
        issued = self._rotations.rotate(caller, reading.rotation(request))
        return pb.RotateResponse(
            api_key=wire.api_key(issued.key, issued.now),
            old_api_key=wire.api_key(issued.old, issued.now) if issued.old else None,
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision),
            secret_omitted=issued.repeated,
        )

    @verification(pb.VerifyResponse)
    def Verify(self, caller: auth.Caller, request: pb.VerifyRequest) -> bytes:
        """Give the verdict on a key."""
        outcome = self.verifier.verify(reading.question(caller.key, request, self._tokens), caller.view)
        _COUNTED[outcome.code].inc()
        return wire.verdict(outcome, self._cache_ttl, self._tokens.consistency)

    @verification(pb.BatchVerifyResponse)
    def BatchVerify(self, caller: auth.Caller, request: pb.BatchVerifyRequest) -> bytes:
        """Give the verdicts on many keys."""
        questions = reading.questions(caller.key, request, self._tokens)
        asked = [question for question in questions if question is not None]
        answers = iter(self.verifier.verify_all(asked, caller.view))
        outcomes = [None if question is None else next(answers) for question in questions]
        for code, count in Counter(outcome.code for outcome in outcomes if outcome is not None).items():
            _COUNTED[code].inc(count)
        return wire.verdicts(outcomes, self._cache_ttl, self._tokens.consistency)

    @stream
    def Watch(self, caller: Key, request: pb.WatchRequest, context: grpc.ServicerContext, send: Send) -> None:
        """Begin to tell what changes."""
        self._watching.open(caller, reading.watch(caller, request, self._tokens), context, send)

    @rpc
    def ListEvents(self, caller: Key, request: pb.ListEventsRequest) -> pb.ListEventsResponse:
        """Read a page of the audit trail."""
        page = self._trail.page(caller, reading.event_query(request))
        return pb.ListEventsResponse(
            events=[wire.event(event) for event in page.events], next_page_token=page.next_page_token
        )

    @rpc
    def ClaimRotation(self, caller: None, request: pb.ClaimRotationRequest) -> pb.ClaimRotationResponse:  # noqa: ARG002
        """Replace a key whose rotation is due."""
        issued = self._rotations.claim(request.claim_token, reading.grace(request))
        return pb.ClaimRotationResponse(
            api_key=wire.api_key(issued.key, issued.now),
            old_api_key=wire.api_key(issued.old, issued.now) if issued.old else None,
            key=issued.text,
            consistency_token=self._tokens.consistency(issued.revision),
        )

    @rpc
    def ListDeliveries(self, caller: Key, request: pb.ListDeliveriesRequest) -> pb.ListDeliveriesResponse:
        """Read a page of deliveries."""
        page = self._deliveries.page(caller, reading.delivery_query(request))
        return pb.ListDeliveriesResponse(
            deliveries=[wire.delivery(row) for row in page.deliveries], next_page_token=page.next_page_token
        )

    @rpc
    def Redeliver(self, caller: Key, request: pb.RedeliverRequest) -> pb.RedeliverResponse:
        """Send a webhook again."""
        row = self._deliveries.redeliver(caller, request.delivery_id)
        return pb.RedeliverResponse(delivery=wire.delivery(row))

    @rpc
    def RotateWebhookSecret(
        self, caller: Key, request: pb.RotateWebhookSecretRequest
    ) -> pb.RotateWebhookSecretResponse:
        """Give a webhook's URL a new secret."""
        replaced = self._deliveries.replace_secret(caller, request.project_id, request.webhook_url)
        return pb.RotateWebhookSecretResponse(
            webhook_secret=replaced.text, previous_expire_time=wire.timestamp(replaced.previous_expire_time)
        )
