"""What one scope grants of another (CONTRACT section 4)."""

from collections.abc import Iterable

RESERVED = "tumbler:"
"""Scopes that begin so are permissions on this service itself; ``*`` does not grant them."""


def grants(granted: str, required: str) -> bool:
    """Say whether ``granted`` covers ``required``.

    A wildcard that is itself asked for is covered by itself and by any wider one.
    """
    if granted == required:
        return True
    if granted == "*":
        return not required.startswith(RESERVED)
    return granted.endswith(":*") and required.startswith(granted[:-1])


def any_grants(granted: Iterable[str], required: str) -> bool:
    """Say whether one of ``granted`` covers ``required``; an empty list covers nothing."""
    for scope in granted:  # noqa: SIM110 - on the way of every call, and the generator costs as much again
        if grants(scope, required):
            return True
    return False


def first_not_held(given: Iterable[str], held: Iterable[str]) -> str | None:
    """Return the first of ``given`` that touches this service's own permissions and is not covered by ``held``."""
    held = tuple(held)
    return next((scope for scope in given if scope.startswith(RESERVED) and not any_grants(held, scope)), None)
