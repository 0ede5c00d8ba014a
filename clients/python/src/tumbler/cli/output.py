"""The output of a secret that is shown once: a new file, else stdout. And the error message if it gets lost."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager as Manager
from contextlib import contextmanager, nullcontext, suppress
from typing import Annotated, Any

import typer

from tumbler.cli import render
from tumbler.cli.errors import Failure
from tumbler.cli.flags import option
from tumbler.cli.session import Session
from tumbler.secret_file import SecretFile
from tumbler.v1.api_key_pb2 import ApiKey

__all__ = [
    "OnlyWebhookSecretOutput",
    "Output",
    "WebhookSecretOutput",
    "forget_stdout",
    "handing_over",
    "lost_key",
    "lost_webhook_secret",
    "put",
    "receiver",
    "webhook_receiver",
]

_WEBHOOK_OPTION = "'--webhook-secret-output'"
_NEW_FILE = "this new file (mode 0600) instead of showing it. The file is created before anything is changed."

Output = Annotated[str | None, option("--output", f"Write the secret to {_NEW_FILE}", metavar="FILE")]
_WEBHOOK_TEXT = f"Write the secret of a new --webhook-url to {_NEW_FILE}"
WebhookSecretOutput = Annotated[str | None, option("--webhook-secret-output", _WEBHOOK_TEXT, metavar="FILE")]
OnlyWebhookSecretOutput = Annotated[
    str | None, option("--webhook-secret-output", _WEBHOOK_TEXT, "--output", metavar="FILE")
]


@contextmanager
def receiver(output: str | None, named: str = "'--output'") -> Iterator[SecretFile | None]:
    """Create the file that an option names, or check that stdout is open. To be called before any call.

    The file is removed at the end unless a secret was written to it.

    Raises:
        typer.BadParameter: The file exists or cannot be written, or stdout is closed.

    """
    if output is None:
        # A closed stdout was replaced by /dev/null.
        if sys.__stdout__ is None:
            raise typer.BadParameter("stdout is closed, so the secret would be lost.", param_hint=named)
        yield None
        return
    try:
        file = SecretFile(output)
    except FileExistsError:
        raise typer.BadParameter(
            f"{output} already exists and is not overwritten: name a new file.", param_hint=named
        ) from None
    except OSError as error:
        raise typer.BadParameter(f"{output}: {error.strerror}.", param_hint=named) from None
    with file:
        yield file


def webhook_receiver(
    output: str | None, webhook_url: str | None, key_output: str | None = None
) -> Manager[SecretFile | None]:
    """Create the file for the secret of a webhook that is about to be set. Do nothing if none is set.

    Raises:
        typer.BadParameter: As in `receiver`. Or the option is given without a webhook. Or only the key goes to a file,
            so that this secret would be shown.

    """
    if webhook_url is None:
        if output is not None:
            raise typer.BadParameter("is only allowed with --webhook-url.", param_hint=_WEBHOOK_OPTION)
        return nullcontext()
    if output is None and key_output is not None:
        raise typer.BadParameter(
            "the secret of the --webhook-url would be shown: use --webhook-secret-output too.",
            param_hint="'--output'",
        )
    return receiver(output, _WEBHOOK_OPTION)


def lost_key(api_key: ApiKey) -> str:
    """Return what to do about a key that was created and that no one has seen."""
    return (
        f"The key {api_key.id} is lost. Replace it: tumbler keys rotate {api_key.id} --output FILE; "
        f"or revoke it: tumbler keys revoke {api_key.id}"
    )


def lost_webhook_secret(url: str, project_id: str) -> str:
    """Return what to do about the secret of a webhook that no one has seen."""
    project = f" --project {shlex.quote(project_id)}" if project_id else ""
    return (
        f"The webhook's secret is lost. Make another: tumbler events rotate-secret {shlex.quote(url)}{project} "
        "--output FILE"
    )


def put(file: SecretFile | None, answer: Any, field: str) -> str:
    """Move a secret from this field of an answer to the file, and return the file's path. Without either, return "".

    Raises:
        OSError: It cannot be written. The answer still holds it.

    """
    secret = getattr(answer, field)
    if file is None or not secret:
        return ""
    file.keep(secret)
    setattr(answer, field, "")
    return str(file.path)


@contextmanager
def handing_over(session: Session, answer: Any, **lost: str) -> Iterator[None]:
    """Report the lost secrets and what to do, if an answer cannot be shown or written to files.

    `lost` has a sentence for each field of the answer that may hold a secret. An empty field is not reported: its
    secret is in its file.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        forget_stdout()
        hints = [sentence for field, sentence in lost.items() if getattr(answer, field)]
        if not hints:
            raise
        message = f"the call succeeded, but its secret could not be written: {error.strerror}"
        failure = Failure(code="NOT_WRITTEN", message=message, hint=" ".join(hints))
        render.print_failure(failure, session.as_json)
        raise typer.Exit(failure.exit_code) from None


def forget_stdout() -> None:
    """Discard unwritten output. Otherwise Python would retry it at exit, and print its own message."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
