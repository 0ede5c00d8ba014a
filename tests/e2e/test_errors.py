"""Errors as a client library receives them."""

import grpc
import pytest
from google.protobuf.message import Message

from tests.e2e.service import OWN_CONNECTION, PATIENCE, Service, refusals
from tests.harness import Refused
from tests.rpc.test_errors import MONSTROUS, ROOM
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

ANSWERED = {name: case for name, case in MONSTROUS.items() if name != "too large"}
"""Requests that the server parses. gRPC itself refuses a larger one."""

STRICT = (("grpc.max_metadata_size", ROOM), ("grpc.absolute_max_metadata_size", ROOM))


@pytest.mark.parametrize(("method", "request_"), ANSWERED.values(), ids=ANSWERED)
def test_a_client_that_takes_little_metadata_learns_why(server: Service, method: str, request_: Message) -> None:
    """However many fields are wrong, a client that accepts only 6 KiB of metadata receives the server's error."""
    channel = grpc.insecure_channel(server.target, (*OWN_CONNECTION, *STRICT))
    for name in ("long one", "long two"):  # so that a name is ambiguous
        server.create(name="default", owner_id=name)
    with channel, pytest.raises(Refused) as refused, refusals():
        getattr(ApiKeyServiceStub(channel), method)(request_, metadata=server.metadata, timeout=PATIENCE)
    assert refused.value.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert refused.value.reason in ("INVALID_FIELD", "REQUEST_TOO_LARGE", "NAME_AMBIGUOUS")
