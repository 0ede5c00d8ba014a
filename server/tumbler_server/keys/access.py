"""Access of callers to projects and scopes (docs/contract.md, "Callers"). A caller is the key that made the call."""

from tumbler_server.errors import OtherProject, ScopeEscalation
from tumbler_server.keys import evidence, record, scopes
from tumbler_server.keys.record import Key
from tumbler_server.store.database import Transaction

OPERATORS = "tumbler"
"""The reserved project. Its keys act in all projects."""


def sees(caller: Key, project_id: str) -> bool:
    """Return whether the caller can see keys of a project."""
    return caller.project_id in (OPERATORS, project_id)


def enter(caller: Key, project_id: str) -> None:
    """Raise ``OtherProject`` unless the caller may act in the project that its request names."""
    if not sees(caller, project_id):
        raise OtherProject


def scope_of(caller: Key, project_id: str) -> str:
    """Return the project of a request with an optional project id, or an empty string for all projects.

    The default is the caller's project, or all projects for an operator's key. Raises ``OtherProject``.
    """
    if project_id:
        enter(caller, project_id)
        return project_id
    return "" if caller.project_id == OPERATORS else caller.project_id


def hand_out(caller: Key, given: tuple[str, ...]) -> None:
    """Raise ``ScopeEscalation`` if the caller would grant a permission on this service that it lacks."""
    lacking = scopes.first_not_held(given, caller.scopes)
    if lacking is not None:
        raise ScopeEscalation(lacking)


def standing(transaction: Transaction, caller: Key) -> Key | None:
    """Return the caller's current record, read in a transaction. None if it is gone, or was changed by hand."""
    rows = evidence.with_records(transaction.read, [caller.id])
    if not rows or evidence.altered_in(rows[0]):
        return None
    return record.from_tuple(rows[0][evidence.OF_RECORD])[0]
