"""Verifiers with outcomes set by a test, for guards."""

from typing import Any

from tests.clients.python.fake_server import key_of
from tumbler import Code, InvalidRequest, NotAllowed, Unavailable, Verification

GOOD = key_of(1)
KEY_TEXT = "a valid API key is required"
FORBIDDEN_TEXT = "this API key does not allow that"
UNDECIDED_TEXT = "API keys cannot be verified at the moment"

OUTCOMES: list[tuple[Code | type[Exception], str, int, str]] = [
    (Code.UNSPECIFIED, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.MALFORMED, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.NOT_FOUND, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.REVOKED, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.SUPERSEDED, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.INACTIVE, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.EXPIRED, "UNAUTHENTICATED", 401, KEY_TEXT),
    (Code.ENVIRONMENT_MISMATCH, "PERMISSION_DENIED", 403, FORBIDDEN_TEXT),
    (Code.IP_NOT_ALLOWED, "PERMISSION_DENIED", 403, FORBIDDEN_TEXT),
    (Code.INSUFFICIENT_SCOPE, "PERMISSION_DENIED", 403, FORBIDDEN_TEXT),
    (Unavailable, "UNAVAILABLE", 503, UNDECIDED_TEXT),
    (NotAllowed, "UNAVAILABLE", 503, UNDECIDED_TEXT),
    (InvalidRequest, "INTERNAL", 500, UNDECIDED_TEXT),
    (ZeroDivisionError, "INTERNAL", 500, UNDECIDED_TEXT),
]
"""The outcome of a verification, and the guard's answer: gRPC status, HTTP status, text."""


class Says:
    """A threaded verifier."""

    def __init__(self) -> None:
        self.outcome: Code | type[Exception] = Code.VALID
        self.asked: list[dict[str, Any]] = []

    def verify(self, **question: Any) -> Verification:
        """Return or raise the outcome."""
        self.asked.append(question)
        if isinstance(self.outcome, Code):
            return Verification(self.outcome, owner_id="owner")
        raise self.outcome("as the test has it")


class SaysAio(Says):
    """An asyncio verifier."""

    async def verify(self, **question: Any) -> Verification:  # type: ignore[override]
        """Return or raise the outcome."""
        return super().verify(**question)
