"""The only place that maps exceptions to statuses.

The caller gets a domain error as it is. Any other exception is a bug in the server: the caller gets a fixed text, and
the log gets the exception's type and stack. Its message is not logged, because it could hold a secret.
"""

import contextlib
from typing import NamedTuple, NoReturn, Protocol

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tumbler.v1 import error_reason_pb2
from tumbler_server import errors, logs
from tumbler_server.logs import places

DOMAIN = "tumbler.dev"

INTERNAL_TEXT = "internal error; the server's log has the details"

STATUSES: dict[type[errors.TumblerError], tuple[grpc.StatusCode, str]] = {
    errors.InvalidFields: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    errors.Undecodable: (grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE"),
    errors.Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    errors.ScopeMissing: (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"),
    errors.OtherProject: (grpc.StatusCode.PERMISSION_DENIED, "OTHER_PROJECT"),
    errors.ScopeEscalation: (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_ESCALATION"),
    errors.SelfWidening: (grpc.StatusCode.PERMISSION_DENIED, "SELF_WIDENING"),
    errors.KeyNotFound: (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND"),
    errors.KeyIsRevoked: (grpc.StatusCode.FAILED_PRECONDITION, "KEY_REVOKED"),
    errors.KeyIsSuperseded: (grpc.StatusCode.FAILED_PRECONDITION, "KEY_SUPERSEDED"),
    errors.KeyIsExpired: (grpc.StatusCode.FAILED_PRECONDITION, "KEY_EXPIRED"),
    errors.NameIsAmbiguous: (grpc.StatusCode.FAILED_PRECONDITION, "NAME_AMBIGUOUS"),
    errors.EtagMismatch: (grpc.StatusCode.ABORTED, "ETAG_MISMATCH"),
    errors.RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
    errors.Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    errors.ReaderTooSlow: (grpc.StatusCode.RESOURCE_EXHAUSTED, "READER_TOO_SLOW"),
    errors.ServerStopping: (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING"),
    errors.StoreUnavailable: (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"),
    errors.CallerGone: (grpc.StatusCode.CANCELLED, "CALLER_GONE"),
    errors.LimitReached: (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED"),
    errors.RequestTooLarge: (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_TOO_LARGE"),
    errors.RequestTooSlow: (grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TOO_SLOW"),
    errors.ClaimTokenInvalid: (grpc.StatusCode.UNAUTHENTICATED, "CLAIM_TOKEN_INVALID"),
    errors.ClaimOutdated: (grpc.StatusCode.FAILED_PRECONDITION, "CLAIM_OUTDATED"),
    errors.WebhooksNeedPepper: (grpc.StatusCode.FAILED_PRECONDITION, "WEBHOOKS_NEED_PEPPER"),
    errors.EndpointNotFound: (grpc.StatusCode.NOT_FOUND, "ENDPOINT_NOT_FOUND"),
    errors.DeliveryNotFound: (grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"),
    errors.DeliveryOutdated: (grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_OUTDATED"),
}
"""The status and ErrorReason of every domain error. The reason is without its prefix."""


class Told(NamedTuple):
    """The status that a caller gets instead of an answer."""

    code: grpc.StatusCode
    message: str
    details: bytes


_NO_METHOD = "Method not found!"  # the text of gRPC's own servers

NO_METHOD = Told(
    grpc.StatusCode.UNIMPLEMENTED,
    _NO_METHOD,
    status_pb2.Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message=_NO_METHOD).SerializeToString(),
)
"""The status of a call to a method that does not exist."""

PATIENCE = 5.0
"""Seconds that a caller has to read the status of its call."""

_DETAILS = "grpc-status-details-bin"

_log = logs.get_logger(__name__)


def abort(context: grpc.ServicerContext, failure: BaseException, method: str) -> NoReturn:
    """End the call with the status that ``failure`` has."""
    code, message, details = told(failure, method)
    context.set_trailing_metadata(((_DETAILS, details),))
    context.abort(code, message)
    raise AssertionError("abort() returned")  # gRPC's abort() always raises


class Ending(Protocol):
    """The part of a call on the loop that ends it."""

    def set_trailing_metadata(self, trailing: tuple[tuple[str, bytes]], /) -> None:
        """Set what is sent with the status."""

    async def abort(self, code: grpc.StatusCode, details: str, /) -> NoReturn:
        """End the call with a status."""


async def end(context: Ending, last: Told) -> NoReturn:
    """End a call on the loop with a status."""
    context.set_trailing_metadata(((_DETAILS, last.details),))
    await context.abort(last.code, last.message)
    raise AssertionError("abort() returned")  # gRPC's abort() always raises


def told(failure: BaseException, method: str) -> Told:
    """Return the status to send for a failure, and log the failure if it is a bug. Clears its traceback."""
    status = to_status(failure)
    if status.code == grpc.StatusCode.INTERNAL.value[0]:
        _log_fault(failure, method)
    forget(failure)
    return Told(_CODES[status.code], status.message, status.SerializeToString())


def forget(failure: BaseException) -> None:
    """Clear the traceback and the context of a failure that has been handled.

    A frame in the traceback may refer to the failure, as a call does that was ended by it. That would be a reference
    cycle, which would keep the call and its stream until the garbage collector runs.
    """
    failure.__traceback__ = failure.__context__ = None


def to_status(failure: BaseException) -> status_pb2.Status:
    """Return the status of an exception, with its details."""
    if not isinstance(failure, errors.TumblerError) or type(failure) not in STATUSES:
        return _status(grpc.StatusCode.INTERNAL, INTERNAL_TEXT, _info("INTERNAL", {}))
    code, reason = STATUSES[type(failure)]
    details: list[Message] = [_info(reason, failure.detail)]
    if isinstance(failure, errors.InvalidFields):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=violation.field, description=violation.rule)
                    for violation in failure.violations
                ]
            )
        )
    if isinstance(failure, errors.Overloaded):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(failure.retry_after)
        details.append(retry)
    return _status(code, failure.message, *details)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _info(reason: str, metadata: dict[str, str]) -> error_details_pb2.ErrorInfo:
    error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")  # raises ValueError for an unknown reason
    return error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata)


def _status(code: grpc.StatusCode, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _log_fault(failure: BaseException, method: str) -> None:
    with contextlib.suppress(Exception):  # a log that cannot be written must not change the answer
        _log.error("a call failed", method=method, error=type(failure).__name__, places=places(failure))
