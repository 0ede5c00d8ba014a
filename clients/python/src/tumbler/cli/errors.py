"""The error of a refused or failed call, from the status and the details that every error of the service carries."""

from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tumbler import keyformat

__all__ = ["Failure"]

_DETAILS_KEY: Final = "grpc-status-details-bin"
_UNREACHABLE: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED")

_HINTS: Final = {
    "UNAUTHENTICATED": "Set TUMBLER_API_KEY, or --api-key-file, to an active key of this server.",
    "SCOPE_MISSING": "Call with a key that carries the scope {scope}.",
    "SCOPE_ESCALATION": "A key can only grant what it holds: call with a key that carries {scope}.",
    "OTHER_PROJECT": "Call with a key of that project, or with an operator's key (project tumbler).",
    "NAME_AMBIGUOUS": "Name the key by one of these ids.",
    "ETAG_MISMATCH": "The key has changed since it was read. Read it again, then decide.",
    "KEY_SUPERSEDED": "Use its successor, {replaced_by_key_id}. If that is lost, rotate it: "
    "tumbler keys rotate {replaced_by_key_id}",
    "REQUEST_ID_REUSED": "Repeat the request unchanged, or use a new --request-id.",
    "CLAIM_TOKEN_INVALID": "Pass the claim_token of this server's webhook key.rotation_due, complete and unchanged.",
    "CLAIM_OUTDATED": "Nothing was changed. The next webhook key.rotation_due brings a new token.",
    "WEBHOOKS_NEED_PEPPER": "Ask the server's operator to add a pepper file; until then, do not use --webhook-url.",
    "DELIVERY_NOT_FOUND": "List the existing ids: tumbler events deliveries.",
    "DELIVERY_OUTDATED": "Nothing needs to be sent any more.",
    "ENDPOINT_NOT_FOUND": "Write the URL exactly as tumbler keys get shows it, and name the keys' --project.",
    "LIMIT_REACHED": "Retrying does not help: ask the server's operator to raise the limit.",
    "REQUEST_TOO_LARGE": "Send less in one call.",
    "STORE_UNAVAILABLE": "The server runs, but its database fails. The server's log has the details.",
    "NOT_IMPLEMENTED": "This server's version does not support that yet.",
    "UNAVAILABLE": "Is a server listening at {endpoint}? Set TUMBLER_ENDPOINT or --endpoint; with TLS also --tls or "
    "--tls-ca.",
    "DEADLINE_EXCEEDED": "{endpoint} did not answer in time; use a longer --timeout. The change may have been made: "
    "check before you retry.",
}
"""Hints by the error's reason, else by its status. The metadata of its ErrorInfo and the endpoint fill placeholders."""


@dataclass(frozen=True)
class Failure:
    """A failed call, as text and as data. Nothing in it is escaped for a terminal yet."""

    code: str
    """The gRPC status, `PERMISSION_DENIED` for example."""

    message: str
    """The message of the server, or of gRPC."""

    reason: str = ""
    """The name of the service's `ErrorReason`, without its prefix. Empty if the service did not answer."""

    metadata: dict[str, str] = field(default_factory=dict)
    """The metadata of the reason, `{"scope": "tumbler:keys:create"}` for example."""

    violations: tuple[tuple[str, str], ...] = ()
    """For invalid input: each field's path, and the rule that it breaks."""

    retry_seconds: float | None = None
    """How long the server asks to wait before a retry."""

    hint: str = ""
    """What to do about it."""

    @classmethod
    def of(cls, error: grpc.RpcError, endpoint: str, api_key: str) -> "Failure":
        """Read the error of a call to this endpoint with this key. Details that cannot be parsed are ignored."""
        code = error.code().name
        info = error_details_pb2.ErrorInfo()
        violations: tuple[tuple[str, str], ...] = ()
        retry_seconds = None
        for detail in _details(error):
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad_request = error_details_pb2.BadRequest()
                detail.Unpack(bad_request)
                violations = tuple((each.field, each.description) for each in bad_request.field_violations)
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
        metadata = dict(sorted(info.metadata.items()))
        hint = _HINTS.get(info.reason) or _HINTS.get(code, "")
        if code == "UNAUTHENTICATED" and api_key and not keyformat.is_well_formed(api_key):
            hint += " The key that was sent is mistyped or truncated: its form or its check is wrong."
        words = {"scope": "it needs", "replaced_by_key_id": "the newer key", **metadata, "endpoint": endpoint}
        return cls(
            code=code,
            message=error.details() or "",
            reason=info.reason,
            metadata=metadata,
            violations=violations,
            retry_seconds=retry_seconds,
            hint=hint.format_map(words),
        )

    @property
    def exit_code(self) -> int:
        """3 if nothing was decided because the server cannot be reached, 1 if it refused."""
        return 3 if self.code in _UNREACHABLE else 1

    def as_data(self) -> dict[str, Any]:
        """Return the data that `--json` prints."""
        return {
            "error": {
                "code": self.code,
                "reason": self.reason,
                "message": self.message,
                "metadata": self.metadata,
                "field_violations": [{"field": path, "description": rule} for path, rule in self.violations],
                "retry_seconds": self.retry_seconds,
                "hint": self.hint,
            }
        }


def _details(error: grpc.RpcError) -> list[Any]:
    for entry in error.trailing_metadata() or ():
        if entry.key == _DETAILS_KEY:
            try:
                return list(status_pb2.Status.FromString(entry.value).details)
            except DecodeError:
                return []
    return []
