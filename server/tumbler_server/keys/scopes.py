"""Which permissions on this service may be given away; ``tumbler.decide`` says what one scope grants of another."""

from collections.abc import Iterable

from tumbler.decide import RESERVED, any_grants


def first_not_held(given: Iterable[str], held: Iterable[str]) -> str | None:
    """Return the first of ``given`` that touches this service's own permissions and is not covered by ``held``."""
    held = tuple(held)
    return next((scope for scope in given if scope.startswith(RESERVED) and not any_grants(held, scope)), None)
