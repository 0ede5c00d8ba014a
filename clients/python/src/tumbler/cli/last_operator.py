"""Questions before a key is ended or narrowed: one before an end for ever, two before the last operator's key goes."""

import sys
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
"""What a key carries that may do everything. No other scope grants it."""

_PROJECT = "tumbler"
_PATIENCE = timedelta(seconds=2)
_WAY_BACK = "where the server's database and pepper file are: tumbler-server operator-key --output FILE"


def confirm(
    session: Session, what: str, is_meant: Callable[[ApiKey], bool], *, yes: bool, always: bool = False
) -> None:
    """Return if the key that is meant may be changed as `what` says; end the command, with nothing changed, if not.

    The last operator's key that works is asked about twice on a terminal, and elsewhere needs `yes`. Another key is
    asked about where that is `always` done, and once.

    Raises:
        typer.Exit: The answer was no, or there is nobody to ask.

    """
    if yes:
        return
    on_terminal = sys.stdin is not None and sys.stdin.isatty()
    if always and on_terminal:
        _ask(what)
    last = _last(session)
    if last is None or not is_meant(last):
        return
    why = f"{last.id} ({last.name}) is the last operator's key that works"
    if not on_terminal:
        hint = f"Nothing was changed. To do it all the same: --yes. The way back is {_WAY_BACK}"
        failure = Failure(code="LAST_OPERATOR", message=why, hint=hint)
        render.print_failure(failure, session.as_json)
        raise typer.Exit(failure.exit_code)
    render.print_note(f"{why}. The way back is {_WAY_BACK}")
    if not always:
        _ask(what)
    _ask("Nobody can manage all projects then. Go on?")


def _ask(question: str) -> None:
    if not typer.confirm(question, err=True):
        render.print_note("Nothing was changed.")
        raise typer.Exit(1)


def _last(session: Session) -> ApiKey | None:
    """Return the one operator's key that works; None where there are more, or where the caller cannot know.

    Who may not list the reserved project, or gets no answer soon, is not kept from ending a key.
    """
    request = ListRequest(
        project_id=_PROJECT, scope=OPERATOR_SCOPE, states=[State.STATE_ACTIVE], page_size=2, show_total_size=False
    )
    try:
        keys = session.call("List", request, at_most=_PATIENCE).api_keys
    except grpc.RpcError:
        return None
    return keys[0] if len(keys) == 1 else None
