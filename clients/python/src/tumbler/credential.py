"""The one credential of a request (docs/contract.md, "Callers"). The server and the guards share this rule.

The guards in other languages have the same function, and ``tests/vectors/credentials.json`` tests them all.
"""

import enum
from collections.abc import Iterable

__all__ = ["Refused", "credential_in"]

_BEARER = "bearer "
_BLANK = " \t"


class Refused(enum.Enum):
    """Why a request has no credential."""

    MISSING = enum.auto()
    AMBIGUOUS = enum.auto()
    """There is more than one: a proxy in between may have checked a different one than we would."""


def credential_in(headers: Iterable[tuple[str, str | bytes]]) -> str | Refused:
    """Return the key of a request, from ``authorization: Bearer <key>`` or ``x-api-key: <key>``.

    ``headers`` are all headers of the request, with lower-case names. Each header of these names counts, even if empty.
    """
    found: list[str | bytes] = []
    for name, value in headers:
        if name == "authorization":
            bearer = isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER
            found.append(value[len(_BEARER) :] if bearer else "")
        elif name == "x-api-key":
            found.append(value)
    if len(found) > 1:
        return Refused.AMBIGUOUS
    if not found or not isinstance(found[0], str):
        return Refused.MISSING
    return found[0].strip(_BLANK) or Refused.MISSING
