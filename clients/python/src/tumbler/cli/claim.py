"""The command `tumbler keys claim`."""

from typing import Annotated

import typer

from tumbler.cli import render
from tumbler.cli.commands import command
from tumbler.cli.inputs import read_key
from tumbler.cli.keys import keys
from tumbler.cli.options import Grace, OldKeyEnds, ending
from tumbler.cli.output import Output, handing_over, lost_key, put, receiver
from tumbler.cli.session import Session
from tumbler.v1.api_key_service_pb2 import ClaimRotationRequest

__all__: list[str] = []


@command(keys, "claim", example="tumbler keys claim - --output new-key < claim-token")
def claim(
    session: Session,
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN",
            help="The claim_token of a webhook. Other users can see arguments, so prefer -, which reads stdin.",
            show_default=False,
        ),
    ],
    grace: Grace = None,
    old_key_ends: OldKeyEnds = None,
    output: Output = None,
) -> None:
    """Exchange a claim token for the key that replaces one whose rotation is due.

    The token is all you need: the command neither reads nor sends a calling key. The token works once.

    The new key is the only line on stdout, or in the file. The file is created before the token is used. To replace the
    old key's file, move the new file over it.
    """
    claim_token = read_key(token, "TOKEN") if token == "-" else token  # noqa: S105 - stdin
    request = ClaimRotationRequest(claim_token=claim_token, **ending(grace, old_key_ends))
    with receiver(output) as file:
        answer = session.call("ClaimRotation", request, with_key=False)
        with handing_over(session, answer, key=lost_key(answer.api_key)):
            kept_in = put(file, answer, "key")
            if session.as_json:
                render.print_json(answer)
            else:
                render.print_new_key(answer.key, answer.api_key, answer.secret_omitted, answer.old_api_key, kept_in)
