"""The servicer without its engine: any threaded gRPC server can call it, and grpcio-testing does."""

from collections.abc import Callable
from typing import Any

import grpc
import grpc_testing
import pytest
from google.protobuf.message import Message

from tests.harness import Refused, World
from tests.rpc.test_callers import ALLOWED, request_for
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.server import SERVICE

METHODS = [method.name for method in SERVICE.methods if not method.server_streaming]


class _Aborted(Exception):
    """Raised by an abort, as in gRPC."""


class _Told:
    """A servicer that keeps error details: grpcio-testing's own abort drops the trailing metadata."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    def __getattr__(self, name: str) -> Callable[[Message, grpc.ServicerContext], Any]:
        behavior = getattr(self._servicer, name)

        def answer(request: Message, context: grpc.ServicerContext) -> Any:
            def abort(code: grpc.StatusCode, details: str) -> None:
                context.set_code(code)
                context.set_details(details)
                raise _Aborted

            context.abort = abort
            try:
                return behavior(request, context)
            except _Aborted:
                return None

        return answer


def call(world: World, method: str, request: Message, key: str) -> Any:
    """Call an RPC through grpcio-testing. Raises ``Refused`` if the call ends with an error status."""
    server = grpc_testing.server_from_dictionary({SERVICE: _Told(world.core.servicer)}, grpc_testing.strict_real_time())
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    running = server.invoke_unary_unary(SERVICE.methods_by_name[method], metadata, request, None)
    response, trailing, code, message = running.termination()
    if code is not grpc.StatusCode.OK:
        raise Refused(code, message, trailing)
    return response


@pytest.mark.parametrize("method", METHODS)
def test_each_rpc_answers_as_over_the_engine(world: World, method: str) -> None:
    """Each RPC except Watch works with a request and a context, with the same result as through the engine."""
    request = request_for(method, world.create().api_key.id)
    expected = ALLOWED.get(method, "UNAUTHENTICATED")  # for ClaimRotation, whose claim token is invalid
    if expected == "OK":
        response = call(world, method, request, world.operator)
        assert response.DESCRIPTOR is SERVICE.methods_by_name[method].output_type
    else:
        with pytest.raises(Refused) as caught:
            call(world, method, request, world.operator)
        assert caught.value.code.name == expected


def test_a_verdict_is_the_engines(world: World) -> None:
    """Verify and BatchVerify return exactly the engine's responses."""
    requests = [pb.VerifyRequest(key=text) for text in (world.create().key, "no key")]
    expected = [world.call("Verify", request) for request in requests]
    assert [call(world, "Verify", request, world.operator) for request in requests] == expected
    batch = call(world, "BatchVerify", pb.BatchVerifyRequest(requests=requests), world.operator)
    assert list(batch.responses) == expected


def test_an_error_has_its_details(world: World) -> None:
    """An error's status has ErrorInfo and BadRequest."""
    with pytest.raises(Refused) as caught:
        call(world, "Create", pb.CreateRequest(project_id="acme", name="ab"), world.operator)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.reason, caught.value.fields) == ("INVALID_FIELD", ["name"])


@pytest.mark.parametrize("method", METHODS)
def test_the_caller_is_proven(world: World, method: str) -> None:
    """A call without a credential is refused, and nothing is written."""
    events = len(world.events())
    with pytest.raises(Refused) as caught:
        call(world, method, request_for(method, "0" * 16), "")
    assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert len(world.events()) == events
