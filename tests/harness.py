"""What tests are written with: a clock that stands, and a whole service in this process."""

import dataclasses
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import founding
from tumbler_server.clock import SECOND
from tumbler_server.config import Config, Installation
from tumbler_server.server import SERVICE, build_core

CHEAP = 4
"""The bcrypt cost of tests: some 2 ms."""


class FrozenClock:
    """A clock that stands still until ``advance`` is called. It starts at 2030-01-01."""

    def __init__(self, now: int = 1_893_456_000 * SECOND) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, microseconds: int) -> None:
        self.now += microseconds


class Refused(Exception):  # noqa: N818 - it is what happened, not a fault
    """A call that ended with an error status, its details taken apart."""

    def __init__(self, code: grpc.StatusCode, message: str, metadata: Any) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.status = status_pb2.Status()
        for name, value in metadata or ():
            if name == "grpc-status-details-bin":
                self.status.ParseFromString(value)

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """Return the ErrorInfo that every error carries."""
        return self._detail(error_details_pb2.ErrorInfo())

    @property
    def reason(self) -> str:
        """Return ErrorInfo's reason."""
        return self.info.reason

    @property
    def fields(self) -> list[str]:
        """Return the paths of the fields that BadRequest names."""
        return [violation.field for violation in self._detail(error_details_pb2.BadRequest()).field_violations]

    @property
    def retry_delay(self) -> float:
        """Return RetryInfo's delay in seconds."""
        return self._detail(error_details_pb2.RetryInfo()).retry_delay.ToTimedelta().total_seconds()

    def _detail(self, message: Any) -> Any:
        for detail in self.status.details:
            if detail.Unpack(message):
                return message
        raise AssertionError(f"no {message.DESCRIPTOR.name} in the details of {self}")


class World:
    """A service in this process, on a database of its own, called through grpcio-testing by its operator."""

    def __init__(self, database_url: str, data_dir: Path, clock: FrozenClock, **settings: Any) -> None:
        self.clock = clock
        self.installation = Installation(data_dir, database_url)
        self.config = Config(self.installation, bcrypt_cost=CHEAP, **settings)
        self.operator = founding.found(self.installation, CHEAP, "tmb")
        self.open()

    def open(self) -> None:
        """Wire the service."""
        self.core = build_core(self.config, self.clock)
        self._server = grpc_testing.server_from_dictionary(
            {SERVICE: self.core.servicer}, grpc_testing.strict_real_time()
        )

    def close(self) -> None:
        """End the service; its database stays."""
        self.core.close()

    def reopen(self, **settings: Any) -> None:
        """End the service and begin again on the same database, with other settings."""
        self.close()
        self.config = dataclasses.replace(self.config, **settings)
        self.open()

    def call(self, method: str, request: Message, key: str | None = None, metadata: Any = None) -> Any:
        """Call an RPC with a key (the operator's unless given; "" sends none), and return the response.

        Raises ``Refused`` where it ended with an error status.
        """
        sent = self.operator if key is None else key
        if metadata is None:
            metadata = (("authorization", f"Bearer {sent}"),) if sent else ()
        running = self._server.invoke_unary_unary(SERVICE.methods_by_name[method], metadata, request, None)
        response, trailing, code, message = running.termination()
        if code is not grpc.StatusCode.OK:
            raise Refused(code, message, trailing)
        return response

    def create(self, key: str | None = None, **fields: Any) -> pb.CreateResponse:
        """Create a key, in project ``acme`` unless another is named."""
        return self.call("Create", pb.CreateRequest(**{"project_id": "acme", **fields}), key)

    def caller(self, *scopes: str, project_id: str = "acme", **fields: Any) -> str:
        """Create a key that may call the service with these scopes, and return its text."""
        return str(self.create(project_id=project_id, scopes=scopes, name="caller", **fields).key)

    def verify(self, text: str, key: str | None = None, **fields: Any) -> pb.VerifyResponse:
        """Verify a key."""
        return self.call("Verify", pb.VerifyRequest(key=text, **fields), key)

    def verdict(self, text: str, key: str | None = None, **fields: Any) -> str:
        """Verify a key and return the name of the code, without its prefix."""
        code = self.verify(text, key, **fields).code
        return pb.VerifyCode.Name(code).removeprefix("VERIFY_CODE_")
