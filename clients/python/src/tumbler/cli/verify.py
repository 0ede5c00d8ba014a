"""The command `tumbler keys verify`."""

import getpass
import sys
from typing import Annotated

import typer

from tumbler.cli import render
from tumbler.cli.commands import command
from tumbler.cli.flags import option
from tumbler.cli.inputs import read_key
from tumbler.cli.keys import keys
from tumbler.cli.session import Session
from tumbler.v1.api_key_service_pb2 import VerifyRequest

__all__: list[str] = []


@command(keys, "verify", example="tumbler keys verify --scope orders:read --client-ip 192.0.2.7 < key.txt")
def verify(
    session: Session,
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="The key. For test keys only: other users can see arguments. - is stdin.",
            show_default=False,
        ),
    ] = None,
    key_file: Annotated[
        str | None, option("--key-file", "Read the key from this file; - is stdin.", metavar="FILE")
    ] = None,
    scope: Annotated[list[str] | None, option("--scope", "A scope that the key must grant. Repeatable.")] = None,
    client_ip: Annotated[
        str, option("--client-ip", "The client's address, from which the key was presented.", metavar="ADDRESS")
    ] = "",
    project: Annotated[str, option("--project", "The project that the key must belong to.", metavar="ID")] = "",
    environment: Annotated[
        str, option("--environment", "The environment that the key must belong to.", metavar="ID")
    ] = "",
    fresh: Annotated[
        bool, option("--fresh", "Have the server check the database for the latest changes first.")
    ] = False,
) -> None:
    """Say whether a key is valid now and meets the given requirements. Exits with 1 if not.

    The key comes from stdin or a file, or on a terminal from a hidden prompt. It is never printed.
    """
    request = VerifyRequest(
        key=_presented_key(session, key, key_file),
        project_id=project,
        environment_id=environment,
        required_scopes=scope,
        client_ip=client_ip,
    )
    if fresh:
        request.consistency.fully_consistent = True
    answer = session.call("Verify", request)
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_verdict(answer)
    if not answer.valid:
        raise typer.Exit(1)


def _presented_key(session: Session, argument: str | None, path: str | None) -> str:
    if argument is not None and path is not None:
        raise typer.BadParameter("cannot be combined with --key-file.", param_hint="KEY")
    if argument not in (None, "-"):
        return argument
    if argument is None and path is None and sys.stdin.isatty():
        # typer prints its prompt before it turns echo off, so text pasted in between would be visible.
        return getpass.getpass("Key: ").strip()
    path = path or "-"
    if path == "-" and session.reads_key_from_stdin:
        raise typer.BadParameter("stdin already provides the calling key; name a file.", param_hint="'--key-file'")
    return read_key(path, "--key-file")
