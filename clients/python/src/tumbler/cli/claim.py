"""The command `tumbler keys claim`."""

from contextlib import nullcontext
from typing import Annotated

import typer

from tumbler.cli import render
from tumbler.cli.commands import command
from tumbler.cli.errors import Failure
from tumbler.cli.flags import option
from tumbler.cli.inputs import read_key
from tumbler.cli.keys import keys
from tumbler.cli.options import Grace
from tumbler.cli.secret_file import SecretFile
from tumbler.cli.session import Session
from tumbler.v1.api_key_service_pb2 import ClaimRotationRequest, ClaimRotationResponse

__all__: list[str] = []


@command(keys, "claim", example="tumbler keys claim - --output new-key < claim-token")
def claim(
    session: Session,
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN",
            help="The claim_token of a webhook. Other users can see arguments: better -, which is stdin.",
            show_default=False,
        ),
    ],
    grace: Grace = None,
    output: Annotated[
        str | None,
        option(
            "--output",
            "Put the new key into this file, which only its owner may read, instead of showing it. An older one is "
            "replaced.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Exchange a claim token for the key that takes the place of one whose rotation is due.

    The token is all that is needed: no calling key is looked for, and none is sent. It works once.

    The new key is the only line on stdout, or in the file; that the file can be written is made sure of before the
    token is used.
    """
    claim_token = read_key(token, "TOKEN") if token == "-" else token  # noqa: S105 - stdin
    request = ClaimRotationRequest(claim_token=claim_token, grace_period=grace)
    with nullcontext() if output is None else SecretFile(output, "--output") as file:
        answer = session.call("ClaimRotation", request, with_key=False)
        if file is not None:
            _keep(session, file, answer)
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_new_key(answer.key, answer.api_key, answer.secret_omitted, answer.old_api_key, output or "")


def _keep(session: Session, file: SecretFile, answer: ClaimRotationResponse) -> None:
    """Move the key from the answer into the file."""
    try:
        file.keep(answer.key)
    except OSError as error:
        left = f"It is in {file.left_in}, in the same folder." if file.left_in else ""
        failure = Failure(
            code="NOT_WRITTEN",
            message=f"the new key was made, but could not be put into the file: {error.strerror}",
            hint=left or f"It is lost. Replace it: tumbler keys rotate {answer.api_key.id}",
        )
        render.print_failure(failure, session.as_json)
        raise typer.Exit(failure.exit_code) from None
    answer.key = ""
