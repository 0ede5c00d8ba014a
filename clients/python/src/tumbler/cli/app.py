"""The root of the command: the options before a subcommand, usage errors and interruptions."""

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from tumbler import __version__
from tumbler.cli import (
    claim,  # noqa: F401 - adds itself to the keys' commands
    ending,  # noqa: F401 - adds itself to the keys' commands
    render,
    verify,  # noqa: F401 - adds itself to the keys' commands
    watch,  # noqa: F401 - adds itself to the keys' commands
    webhooks,  # noqa: F401 - adds its commands to those of events
)
from tumbler.cli.commands import help_text
from tumbler.cli.events import events
from tumbler.cli.flags import Flags, takes_flags
from tumbler.cli.keys import keys

__all__ = ["run"]

app = typer.Typer(name="tumbler", pretty_exceptions_show_locals=False)
app.add_typer(keys)
app.add_typer(events)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tumbler {__version__}")
        raise typer.Exit


def root(
    context: typer.Context,
    flags: Flags,
    version: Annotated[  # noqa: ARG001 - the option's callback does it all
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Manage and verify the API keys of a Tumbler server.

    The calling key comes from TUMBLER_API_KEY or --api-key-file, never from an argument: other users of the machine can
    see arguments. Connection options may come before or after the subcommand.

    Exit codes: 0 done or valid, 1 refused or not valid, 2 usage error, 3 the server cannot be reached.
    """
    context.obj = flags


app.callback(help=help_text(root, "TUMBLER_API_KEY=$(cat operator.key) tumbler keys list --project acme"))(
    takes_flags(root)
)


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code. Print a message on stderr if something went wrong."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed; what is printed to None goes to the other stream
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal's encoding cannot show must not lose the rest of the answer.
            stream.reconfigure(errors="backslashreplace")
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        render.print_misuse("an argument is not valid UTF-8.", "tumbler", as_json="--json" in arguments)
        return 2
    try:
        return app(arguments, prog_name="tumbler", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        # typer moved from click's exceptions to its own. The usage errors of both have this method.
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "tumbler"
        render.print_misuse(error.format_message(), path, as_json="--json" in arguments)
        return 2
