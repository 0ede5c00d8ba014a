"""Confirmation before a key is ended or narrowed: once before a permanent end, twice for the last operator's key."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta

import grpc
import typer

from tumbler.cli import render
from tumbler.cli.errors import Failure
from tumbler.cli.session import Session
from tumbler.v1.api_key_pb2 import ApiKey, State
from tumbler.v1.api_key_service_pb2 import ListRequest

__all__ = ["OPERATOR_SCOPE", "confirm"]

OPERATOR_SCOPE = "tumbler:*"
"""The scope of a key that may do everything. No other scope grants it."""

_PROJECT = "tumbler"
_PATIENCE = timedelta(seconds=2)
_SOON = timedelta(days=1)
_WAY_BACK = "with the server's database and pepper file, run tumbler-server operator-key --output FILE"


def confirm(
    session: Session, what: str, is_meant: Callable[[ApiKey], bool], *, yes: bool, always: bool = False
) -> None:
    """Return if the change that `what` describes may be made, else end the command with nothing changed.

    The last operator's key that works, from anywhere and for longer than a day, is confirmed twice on a terminal, and
    elsewhere needs `yes`. Any other key is confirmed once if `always` is set.

    Raises:
        typer.Exit: The answer was no, or there is no terminal to ask on.

    """
    if yes:
        return
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    if always and on_terminal:
        _ask(what)
    last = _last(session)
    if last is None or not is_meant(last):
        return
    why = f"{last.id} ({last.name}) is the last working operator's key"
    if not on_terminal:
        hint = f"Nothing was changed. To proceed anyway, use --yes. To get another operator's key: {_WAY_BACK}"
        failure = Failure(code="LAST_OPERATOR", message=why, hint=hint)
        render.print_failure(failure, session.as_json)
        raise typer.Exit(failure.exit_code)
    render.print_note(f"{why}. To get another one: {_WAY_BACK}")
    if not always:
        _ask(what)
    _ask("Without it, no key can manage all projects. Continue?")


def _ask(question: str) -> None:
    if not typer.confirm(question, err=True):
        render.print_note("Nothing was changed.")
        raise typer.Exit(1)


def _last(session: Session) -> ApiKey | None:
    """Return the only operator's key that works. None if there are more, or if the caller cannot find out.

    Keys that are bound to networks, or expire within a day, count only if there are no others.
    A caller who may not list the reserved project, or gets no answer soon, may still end a key.
    """
    request = ListRequest(
        project_id=_PROJECT, scope=OPERATOR_SCOPE, states=[State.STATE_ACTIVE], page_size=1_000, show_total_size=False
    )
    try:
        keys = session.call("List", request, at_most=_PATIENCE).api_keys
    except grpc.RpcError as failure:
        if failure.code() is not grpc.StatusCode.PERMISSION_DENIED:
            unknown = "Not known, and not asked about: whether this is the last working operator's key"
            render.print_note(f"{unknown} ({failure.code().name}).")
        return None
    soon = time.time() + _SOON.total_seconds()
    lasting = [key for key in keys if not key.allowed_cidrs and not 0 < key.expire_time.seconds < soon]
    counted = lasting or keys
    return counted[0] if len(counted) == 1 else None
