"""Whose keys a caller may touch (docs/contract.md, "Callers"). A caller is the key that made the call."""

from tumbler_server.errors import OtherProject, ScopeEscalation
from tumbler_server.keys import record, scopes
from tumbler_server.keys.record import Key
from tumbler_server.store.database import Transaction

OPERATORS = "tumbler"
"""The reserved project, whose keys act in all others."""


def sees(caller: Key, project_id: str) -> bool:
    """Say whether keys of the project exist at all for the caller."""
    return caller.project_id in (OPERATORS, project_id)


def enter(caller: Key, project_id: str) -> None:
    """Raise ``OtherProject`` unless the caller may act in a project that its request names."""
    if not sees(caller, project_id):
        raise OtherProject


def scope_of(caller: Key, project_id: str) -> str:
    """Return the one project that a request is about, or nothing for all of them, where it may be left out.

    Raises ``OtherProject``.
    """
    if project_id:
        enter(caller, project_id)
        return project_id
    return "" if caller.project_id == OPERATORS else caller.project_id


def hand_out(caller: Key, given: tuple[str, ...]) -> None:
    """Raise ``ScopeEscalation`` where the caller would give away a permission on this service that it lacks."""
    lacking = scopes.first_not_held(given, caller.scopes)
    if lacking is not None:
        raise ScopeEscalation(lacking)


def standing(transaction: Transaction, caller: Key) -> Key | None:
    """Return the caller's record as it stands in a transaction; None where it is not there any more."""
    return record.find(transaction.read, caller.id)
