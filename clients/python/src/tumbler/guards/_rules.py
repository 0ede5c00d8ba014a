"""The rules that all guards share: where the key is, what it must satisfy, and which refusal follows."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tumbler._logging import log
from tumbler.credential import Refused, credential_in
from tumbler.decide import Code, parse_address
from tumbler.errors import InvalidRequest, TumblerError
from tumbler.projects import ProjectId, projects_of
from tumbler.verification import Verification

Request = TypeVar("Request")

Scopes = Iterable[str] | Callable[[Request], Iterable[str] | None]
"""The scopes that a request needs: always the same, or a function of the request; None lets no key pass."""

LOGGER = logging.getLogger("tumbler.guards")

_NOT_ALLOWED = frozenset({Code.ENVIRONMENT_MISMATCH, Code.IP_NOT_ALLOWED, Code.INSUFFICIENT_SCOPE})


@dataclass(frozen=True)
class Refusal:
    """The refusal that the caller who presented a key receives. It says nothing about the key."""

    grpc: str
    """The name of a gRPC status."""
    http: int
    text: str

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers of the refusal."""
        if self.http == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": "1"} if self.http == 503 else {}


KEY_REQUIRED = Refusal("UNAUTHENTICATED", 401, "a valid API key is required")
NOT_ALLOWED = Refusal("PERMISSION_DENIED", 403, "this API key does not allow that")
UNDECIDED = Refusal("UNAVAILABLE", 503, "API keys cannot be verified at the moment")
MISTAKEN = Refusal("INTERNAL", 500, UNDECIDED.text)


class Unlisted(Exception):
    """The guard's function knows no scopes for a request, so no key lets it pass."""


class Rules(Generic[Request]):
    """What a guard demands of a request's key."""

    def __init__(
        self,
        scopes: Scopes[Request],
        client_ip: Callable[[Request], str | None],
        environment_id: str | None,
        project_id: ProjectId | None,
    ) -> None:
        if isinstance(scopes, str):
            raise TypeError("scopes: must be a sequence of scopes, or a function of the request, not one string")
        self._scopes = scopes if callable(scopes) else tuple(scopes)
        self._client_ip = client_ip
        self._environment_id = environment_id
        self._project_ids = None if project_id is None else projects_of(project_id)

    def arguments(self, key: str, request: Request) -> dict[str, Any]:
        """Return the arguments of ``verify``. Raises ``Unlisted``."""
        scopes = self._scopes(request) if callable(self._scopes) else self._scopes
        if scopes is None:
            raise Unlisted
        return {
            "key": key,
            "required_scopes": tuple(scopes),
            "client_ip": self._client_ip(request),
            "environment_id": self._environment_id,
            "project_id": self._project_ids,
        }


def presented_key(headers: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the key of a request, or None if there is none or more than one."""
    found = credential_in(headers)
    if found is Refused.AMBIGUOUS:
        log(LOGGER, logging.INFO, "denied: more than one credential")
    return found if isinstance(found, str) else None


def decoded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str | bytes]]:
    """Return the headers of an ASGI scope as text."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]


def refusal_for_verdict(verification: Verification) -> Refusal | None:
    """Return the refusal that follows from a verdict, or None if the request may pass. Logs why it may not."""
    if verification:
        return None
    log_refusal(verification)
    return refusal_for(verification)


def refusal_for_error(error: Exception) -> Refusal:
    """Return the refusal for an error instead of a verdict, and log the error."""
    log_refusal(error)
    return refusal_for(error)


def refusal_for(outcome: Verification | Exception) -> Refusal:
    """Return the refusal for an outcome that lets nothing pass."""
    if isinstance(outcome, Verification):
        return NOT_ALLOWED if outcome.code in _NOT_ALLOWED else KEY_REQUIRED
    if isinstance(outcome, Unlisted):
        return NOT_ALLOWED
    return UNDECIDED if _is_undecided(outcome) else MISTAKEN


def log_refusal(outcome: Verification | Exception) -> None:
    """Log why something was refused."""
    if isinstance(outcome, Verification):
        log(LOGGER, logging.INFO, "denied: %s, key %s", outcome.code.name, outcome.key_id or "unknown")
    elif isinstance(outcome, Unlisted):
        log(LOGGER, logging.INFO, "denied: no scopes are listed for this request")
    elif _is_undecided(outcome):
        log(LOGGER, logging.ERROR, "undecided: %s: %s", type(outcome).__name__, outcome)
    else:
        unexpected = None if isinstance(outcome, TumblerError) else outcome
        log(LOGGER, logging.ERROR, "the guard failed: %s", outcome, error=unexpected)


def _is_undecided(error: Exception) -> bool:
    return isinstance(error, TumblerError) and not isinstance(error, InvalidRequest)


def address_or_none(text: str | None) -> str | None:
    """Return the text if it is an IP address, else None: a Unix socket or a test client has none."""
    return text if text and parse_address(text) is not None else None
