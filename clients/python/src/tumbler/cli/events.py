"""The command that reads the audit trail."""

from typing import Annotated

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler.cli import render
from tumbler.cli.commands import command
from tumbler.cli.flags import option
from tumbler.cli.options import Every, OfKey, PageSize, PageToken, Project, names
from tumbler.cli.session import Session
from tumbler.cli.values import EVENT_TYPES, moment
from tumbler.v1.api_key_service_pb2 import ListEventsRequest

__all__ = ["events"]

events = typer.Typer(
    name="events",
    help="Read the events of keys, and manage the webhooks made of them.",
    pretty_exceptions_show_locals=False,
)


@command(events, "list", example="tumbler events list --project acme --type revoked --since 7d --all")
def list_(
    session: Session,
    project: Project = "",
    key: OfKey = "",
    type_: Annotated[
        list[str] | None,
        names(
            "--type",
            "Only these types: created, updated, activated, deactivated, revoked, rotated, rotation-due, "
            "rotation-claimed, rotation-overdue or expiring. Repeatable.",
            EVENT_TYPES,
            "TYPE",
        ),
    ] = None,
    since: Annotated[
        Timestamp | None,
        option(
            "--since",
            "Only changes at or after this time, or within this duration before now. With a page token: the time.",
            metavar="TIME|DURATION",
            parser=moment,
        ),
    ] = None,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    every: Every = False,
) -> None:
    """List changes, oldest first: what was done to which key, when, and by whom.

    The calling key needs the scope tumbler:events:read. To follow changes as they happen, use tumbler keys watch.
    """
    request = ListEventsRequest(
        project_id=project,
        key_id=key,
        types=type_,
        since_time=since,
        page_size=page_size or (1000 if every else 0),
        page_token=page_token,
    )
    answer = session.call("ListEvents", request)
    while every and answer.next_page_token:
        request.page_token = answer.next_page_token
        page = session.call("ListEvents", request)
        answer.events.extend(page.events)
        answer.next_page_token = page.next_page_token
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_events(answer, since)
