"""The rule for granting permissions on this service. ``tumbler.decide`` defines which scopes a scope grants."""

from collections.abc import Iterable

from tumbler.decide import RESERVED, any_grants


def first_not_held(given: Iterable[str], held: Iterable[str]) -> str | None:
    """Return the first scope in ``given`` on this service's own permissions that ``held`` does not cover, or None."""
    held = tuple(held)
    return next((scope for scope in given if scope.startswith(RESERVED) and not any_grants(held, scope)), None)
