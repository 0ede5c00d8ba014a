"""The commands for webhooks: list deliveries, send one again, and make a new signing secret."""

from typing import Annotated

import typer

from tumbler.cli import render
from tumbler.cli.commands import command
from tumbler.cli.events import events
from tumbler.cli.options import Every, OfKey, PageSize, PageToken, Project, names
from tumbler.cli.output import Output, handing_over, lost_webhook_secret, put, receiver
from tumbler.cli.session import Session
from tumbler.cli.values import DELIVERY_STATES
from tumbler.v1.api_key_service_pb2 import ListDeliveriesRequest, RedeliverRequest, RotateWebhookSecretRequest

__all__: list[str] = []


@command(events, "deliveries", example="tumbler events deliveries --project acme --state failed --state endpoint-off")
def deliveries(
    session: Session,
    project: Project = "",
    key: OfKey = "",
    state: Annotated[
        list[str] | None,
        names(
            "--state",
            "Only deliveries in this state: pending, delivered, failed, outdated or endpoint-off. Repeatable.",
            DELIVERY_STATES,
            "STATE",
        ),
    ] = None,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    every: Every = False,
) -> None:
    """List webhook deliveries, newest first: the event and its key, whether it arrived, and when it is retried.

    The calling key needs the scope tumbler:events:read. Retries go on for three days, at growing intervals.
    """
    request = ListDeliveriesRequest(
        project_id=project,
        key_id=key,
        states=state,
        page_size=page_size or (1000 if every else 0),
        page_token=page_token,
    )
    answer = session.call("ListDeliveries", request)
    while every and answer.next_page_token:
        request.page_token = answer.next_page_token
        page = session.call("ListDeliveries", request)
        answer.deliveries.extend(page.deliveries)
        answer.next_page_token = page.next_page_token
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_deliveries(answer)


@command(events, "redeliver", example="tumbler events redeliver msg_0123456789abcdef0123456789abcdef")
def redeliver(
    session: Session,
    delivery_id: Annotated[
        str, typer.Argument(metavar="DELIVERY_ID", help="The id that events deliveries shows.", show_default=False)
    ],
) -> None:
    """Send a webhook again, immediately and with the same id, and restart its three days of retries.

    The calling key needs the scope tumbler:keys:update. An endpoint that answered 410 (gone) is switched on again.
    """
    answer = session.call("Redeliver", RedeliverRequest(delivery_id=delivery_id))
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_delivery(answer.delivery)


@command(
    events, "rotate-secret", example="tumbler events rotate-secret https://hooks.example/tumbler --output new-secret"
)
def rotate_secret(
    session: Session,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The --webhook-url that a key has or had.", show_default=False)
    ],
    project: Project = "",
    output: Output = None,
) -> None:
    """Make a new secret for a webhook, and show it once as the only line on stdout, or write it to a file.

    For 24 hours the old secret also signs, so that the receiver can switch without losing webhooks. The calling key
    needs the scope tumbler:keys:update.
    """
    request = RotateWebhookSecretRequest(project_id=project, webhook_url=url)
    with receiver(output) as file:
        answer = session.call("RotateWebhookSecret", request)
        with handing_over(session, answer, webhook_secret=lost_webhook_secret(url, project)):
            kept_in = put(file, answer, "webhook_secret")
            if session.as_json:
                render.print_json(answer)
            else:
                render.print_rotated_webhook_secret(answer, kept_in)
