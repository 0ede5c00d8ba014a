"""The commands that end a key, temporarily or permanently: `tumbler keys deactivate`, `activate` and `revoke`."""

from typing import Annotated

import typer

from tumbler.cli.commands import command
from tumbler.cli.flags import option
from tumbler.cli.keys import keys, print_record
from tumbler.cli.last_operator import confirm
from tumbler.cli.options import ByName, Environment, KeyId, OptionalKeyId, Project, Yes, names
from tumbler.cli.session import Session
from tumbler.cli.values import REASONS
from tumbler.v1 import api_key_pb2, api_key_service_pb2

__all__: list[str] = []


@command(keys, "activate", example="tumbler keys activate --name ci-job --project acme")
def activate(
    session: Session,
    key_id: OptionalKeyId = None,
    name: ByName = "",
    project: Project = "",
    environment: Environment = "",
) -> None:
    """Switch an inactive key on again."""
    _set_active(session, True, key_id, name, project, environment)


@command(keys, "deactivate", example="tumbler keys deactivate 0123456789abcdef")
def deactivate(
    session: Session,
    key_id: OptionalKeyId = None,
    name: ByName = "",
    project: Project = "",
    environment: Environment = "",
    yes: Yes = False,
) -> None:
    """Switch a key off. It can be switched on again; to end it permanently, revoke it.

    For the last working operator's key it asks twice on a terminal; without a terminal it needs --yes.
    """
    _set_active(session, False, key_id, name, project, environment, yes)


def _set_active(
    session: Session, active: bool, key_id: str | None, name: str, project: str, environment: str, yes: bool = False
) -> None:
    if bool(key_id) == bool(name):
        raise typer.BadParameter("name one key, by its id or with --name.", param_hint="KEY_ID")
    if key_id and (project or environment):
        raise typer.BadParameter("cannot be combined with --project or --environment.", param_hint="KEY_ID")
    request = api_key_service_pb2.SetActiveRequest(active=active)
    if key_id:
        request.key_id = key_id
    else:
        request.by_name.CopyFrom(api_key_service_pb2.KeyName(project_id=project, environment_id=environment, name=name))

    def is_meant(last: api_key_pb2.ApiKey) -> bool:
        if key_id:
            return last.id == key_id
        return (last.name, last.environment_id) == (name, environment) and project in ("", last.project_id)

    if not active:
        confirm(session, f"Switch {key_id or name!a} off?", is_meant, yes=yes)
    print_record(session, session.call("SetActive", request))


@command(keys, "revoke", example="tumbler keys revoke 0123456789abcdef --reason compromised --comment 'in a log'")
def revoke(
    session: Session,
    key_id: KeyId,
    reason: Annotated[
        str | None,
        names("--reason", "For the record: compromised, superseded, owner-left, unused or other.", REASONS, "REASON"),
    ] = None,
    comment: Annotated[str, option("--comment", "For the record. Must not contain a secret.", metavar="TEXT")] = "",
    yes: Yes = False,
) -> None:
    """Revoke a key permanently, from the moment that this command returns.

    On a terminal it asks first, and twice for the last working operator's key; without a terminal that key needs --yes.
    """
    confirm(session, f"Revoke {key_id!a} permanently?", lambda last: last.id == key_id, yes=yes, always=True)
    request = api_key_service_pb2.RevokeRequest(key_id=key_id, reason=reason, comment=comment)
    print_record(session, session.call("Revoke", request))
