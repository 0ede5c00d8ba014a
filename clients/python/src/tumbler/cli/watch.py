"""The command `tumbler keys watch`."""

import json
import select
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from tumbler.cli import render
from tumbler.cli.board import Board
from tumbler.cli.commands import command
from tumbler.cli.keys import keys
from tumbler.cli.options import Project
from tumbler.cli.session import Session
from tumbler.cli.stream import Broken, follow
from tumbler.cli.text import without_secrets
from tumbler.v1.api_key_service_pb2 import WatchResponse

__all__: list[str] = []


class _View(Protocol):
    """Shows the stream."""

    def show(self, response: WatchResponse) -> None:
        """Show a response. A reset comes before the changes."""

    def note(self, state: str, text: str) -> None:
        """Report the state of the stream on stderr: open, broken or healed."""


class _Lines:
    """One line for each change, for pipes."""

    def show(self, response: WatchResponse) -> None:
        if response.reset:
            render.print_note(render.RESET)
        for event in response.events:
            print(render.event_line(event).plain, flush=True)

    def note(self, state: str, text: str) -> None:  # noqa: ARG002 - the text includes the state
        render.print_note(text)


class _JsonLines:
    """One JSON object for each change, for programs."""

    def show(self, response: WatchResponse) -> None:
        if response.reset:
            print(json.dumps({"reset": True}), flush=True)
        for event in response.events:
            render.print_json_line(event)

    def note(self, state: str, text: str) -> None:
        print(json.dumps({"stream": state, "message": text}), file=sys.stderr)


@command(keys, "watch", example="tumbler keys watch --project acme")
def watch(session: Session, project: Project = "") -> None:
    """Show each change of a key as it happens, until Ctrl-C.

    On a terminal, the keys that changed last are shown below the changes, with their names and states; for these the
    calling key also needs the scope tumbler:keys:read. In a pipe, each change is one line. With --json it is one
    object: a KeyEvent of the protos, or {"reset": true} where changes may be missing.

    A broken stream resumes where it broke, so that nothing is missed. stderr says when it breaks and when it resumes.
    """
    opened = broken = False
    with _view(session) as view:
        for news in follow(session, project):
            _fail_if_nobody_reads()
            if isinstance(news, Broken):
                if not broken:
                    reason = ": ".join(filter(None, (news.failure.code, without_secrets(news.failure.message))))
                    view.note("broken", f"The stream broke; reconnecting. {reason}")
                broken = True
                continue
            if not opened:
                view.note("open", f"Watching for changes at {session.endpoint}; press Ctrl-C to stop.")
            elif broken:
                view.note("healed", "The stream resumed where it broke.")
            opened, broken = True, False
            view.show(news)


def _view(session: Session) -> AbstractContextManager[_View]:
    if session.as_json:
        return nullcontext(_JsonLines())
    if sys.stdout.isatty():
        return Board(session)
    return nullcontext(_Lines())


def _fail_if_nobody_reads() -> None:
    """Raise BrokenPipeError if the pipe's reader has gone. It may go long before there is something to write."""
    if not hasattr(select, "poll"):
        return
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):
        return
    if any(happened & (select.POLLERR | select.POLLHUP) for _, happened in poll.poll(0)):
        raise BrokenPipeError
