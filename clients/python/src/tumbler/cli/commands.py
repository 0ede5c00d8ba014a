"""Turns a function into a subcommand: its options, its connection, and the exit code of its errors."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import grpc
import typer

from tumbler.cli import render
from tumbler.cli.errors import Failure
from tumbler.cli.flags import Flags, takes_flags
from tumbler.cli.output import forget_stdout
from tumbler.cli.session import Session

__all__ = ["command", "help_text"]

_P = ParamSpec("_P")
_Command = Callable[Concatenate[Session, _P], None]

_READER_WENT_AWAY = 141  # as a shell reports SIGPIPE


def command(group: typer.Typer, name: str, *, example: str) -> Callable[[_Command[_P]], _Command[_P]]:
    """Add a function to a group of commands, under this name.

    Its first parameter is its `Session`. The others become options, together with those of the connection. Its
    docstring and the example are the command's help. An error of a call is printed and ends the command.
    """

    def register(function: _Command[_P]) -> _Command[_P]:
        def run(context: typer.Context, flags: Flags, **values: Any) -> None:
            session = Session(flags.inside(context.obj))
            try:
                function(session, **values)  # type: ignore[call-arg]  # typer makes the values by its signature
                sys.stdout.flush()
            except grpc.RpcError as error:
                failure = Failure.of(error, session.endpoint, session.api_key)
                render.print_failure(failure, session.as_json)
                raise typer.Exit(failure.exit_code) from None
            except BrokenPipeError:
                forget_stdout()
                raise typer.Exit(_READER_WENT_AWAY) from None
            except OSError as error:
                forget_stdout()
                message = f"the call succeeded, but its answer could not be written: {error.strerror}"
                failure = Failure(code="NOT_WRITTEN", message=message)
                render.print_failure(failure, session.as_json)
                raise typer.Exit(failure.exit_code) from None
            finally:
                session.close()

        context, flags = list(inspect.signature(run).parameters.values())[:2]
        own = list(inspect.signature(function).parameters.values())[1:]
        run.__signature__ = inspect.Signature([context, flags, *own])  # type: ignore[attr-defined]  # typer reads it
        group.command(name, help=help_text(function, example))(takes_flags(run))
        return function

    return register


def help_text(function: Callable[..., object], example: str) -> str:
    """Return a function's docstring as a command's help, with an example below it."""
    paragraphs = [paragraph.replace("\n", " ") for paragraph in (inspect.getdoc(function) or "").split("\n\n")]
    return "\n\n".join([*paragraphs, f"\b\nExample:\n  {example}"])
