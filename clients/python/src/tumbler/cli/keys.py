"""The commands that manage keys. Each builds one request, calls the server and prints the answer."""

from typing import Annotated, Any

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler.cli import render
from tumbler.cli.commands import command
from tumbler.cli.flags import option
from tumbler.cli.last_operator import OPERATOR_SCOPE, confirm
from tumbler.cli.options import (
    Environment,
    Every,
    Grace,
    KeyId,
    OldKeyEnds,
    PageSize,
    PageToken,
    Project,
    RequestId,
    RotationInterval,
    Skip,
    WebhookUrl,
    Yes,
    ending,
    names,
    spans,
    times,
)
from tumbler.cli.output import (
    OnlyWebhookSecretOutput,
    Output,
    WebhookSecretOutput,
    handing_over,
    lost_key,
    lost_webhook_secret,
    put,
    receiver,
    webhook_receiver,
)
from tumbler.cli.session import Session
from tumbler.cli.values import STATES, beginning_with, pairs
from tumbler.v1 import api_key_pb2, api_key_service_pb2

__all__ = ["keys", "print_record"]

keys = typer.Typer(
    name="keys",
    help="Create, read, update, rotate, revoke, verify and watch keys.",
    pretty_exceptions_show_locals=False,
)

_ORDERS = ("create_time", "name", "expire_time", "last_used_time")


@command(keys, "create", example="tumbler keys create --project acme --name ci-job --scope orders:read --output ci.key")
def create(
    session: Session,
    project: Annotated[str, option("--project", "The project that the key belongs to.", metavar="ID")],
    environment: Environment = "",
    name: Annotated[str, option("--name", "Name of the key, 3-255 characters.")] = "",
    owner: Annotated[str, option("--owner", "The owner on whose behalf the key acts.", metavar="ID")] = "",
    scope: Annotated[list[str] | None, option("--scope", "What the key may do. Repeatable.")] = None,
    metadata: Annotated[
        list[str] | None,
        option("--metadata", "Returned to every service that verifies the key. Repeatable.", metavar="NAME=VALUE"),
    ] = None,
    allow_cidr: Annotated[
        list[str] | None,
        option("--allow-cidr", "A network from which the key may be used. Repeatable.", metavar="CIDR"),
    ] = None,
    expires: Annotated[Timestamp | None, times("--expires", "When the key expires.")] = None,
    ttl: Annotated[Duration | None, spans("--ttl", "How long the key is valid, instead of --expires.")] = None,
    prefix: Annotated[str, option("--prefix", "The prefix of the key's text, for example acme_live.")] = "",
    rotation_interval: RotationInterval = None,
    webhook_url: WebhookUrl = None,
    request_id: RequestId = None,
    validate_only: Annotated[bool, option("--validate-only", "Validate the request without creating a key.")] = False,
    output: Output = None,
    webhook_secret_output: WebhookSecretOutput = None,
) -> None:
    """Create a key, and show it once or write it to a file.

    Without --output the key is the only line on stdout, so that you can pipe it into a secret store.
    A new --webhook-url has a secret of its own, with which its receiver checks webhooks. That secret is shown once, on
    a line of stderr; with --json it is the field webhook_secret.
    """
    request = api_key_service_pb2.CreateRequest(
        project_id=project,
        environment_id=environment,
        name=name,
        owner_id=owner,
        scopes=scope,
        metadata=pairs(metadata or (), "--metadata"),
        allowed_cidrs=allow_cidr,
        prefix=prefix,
        rotation=_rotation(rotation_interval, webhook_url),
        request_id=str(request_id or ""),
        validate_only=validate_only,
        **_expiry(expires, ttl),
    )
    with receiver(output) as file, webhook_receiver(webhook_secret_output, webhook_url, output) as webhook_file:
        answer = session.call("Create", request)
        lost_secret = lost_webhook_secret(webhook_url or "", project)
        with handing_over(session, answer, key=lost_key(answer.api_key), webhook_secret=lost_secret):
            kept_in = put(file, answer, "key")
            secret_in = put(webhook_file, answer, "webhook_secret")
            if session.as_json:
                render.print_json(answer)
            else:
                render.print_new_key(answer.key, answer.api_key, answer.secret_omitted, kept_in=kept_in)
                render.print_webhook_secret(answer.webhook_secret, secret_in)


@command(keys, "get", example="tumbler keys get 0123456789abcdef")
def get(session: Session, key_id: KeyId) -> None:
    """Show a key's record, whatever its state. The secret is never shown: it is not stored."""
    answer = session.call("Get", api_key_service_pb2.GetRequest(key_id=key_id))
    print_record(session, answer)


@command(keys, "list", example="tumbler keys list --project acme --state active --order-by 'expire_time asc'")
def list_(
    session: Session,
    project: Project = "",
    environment: Environment = "",
    owner: Annotated[str, option("--owner", "Only keys of this owner.", metavar="ID")] = "",
    state: Annotated[
        list[str] | None,
        names(
            "--state",
            "Only keys in this state: active, inactive, expired, revoked or superseded. Repeatable.",
            STATES,
            "STATE",
        ),
    ] = None,
    scope: Annotated[str, option("--scope", "Only keys with exactly this scope.")] = "",
    search: Annotated[str, option("--search", "Only keys whose name or visible prefix contains this text.")] = "",
    order_by: Annotated[
        str,
        option(
            "--order-by",
            "create_time (default, newest first), name, expire_time or last_used_time; then ' asc' or ' desc'.",
            metavar="FIELD",
            autocompletion=beginning_with(_ORDERS),
        ),
    ] = "",
    page_size: PageSize = 0,
    skip: Skip = 0,
    page_token: PageToken = "",
    every: Every = False,
    total: Annotated[bool, option("--total", "Count all matching keys.")] = False,
) -> None:
    """List keys of all states, one page at a time."""
    request = api_key_service_pb2.ListRequest(
        project_id=project,
        environment_id=environment,
        owner_id=owner,
        states=state,
        scope=scope,
        search=search,
        order_by=order_by,
        page_size=page_size or (1000 if every else 0),
        page_token=page_token,
        skip=skip,
        show_total_size=total,
    )
    answer = session.call("List", request)
    while every and answer.next_page_token:
        request.page_token, request.skip, request.show_total_size = answer.next_page_token, 0, False
        page = session.call("List", request)
        answer.api_keys.extend(page.api_keys)
        answer.next_page_token = page.next_page_token
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_keys(answer)


@command(keys, "update", example="tumbler keys update 0123456789abcdef --scope orders:read --expires 2027-01-31")
def update(
    session: Session,
    key_id: KeyId,
    name: Annotated[str | None, option("--name", "A new name.")] = None,
    owner: Annotated[str | None, option("--owner", "A new owner; '' for none.", metavar="ID")] = None,
    scope: Annotated[list[str] | None, option("--scope", "The new scopes, which replace the old. Repeatable.")] = None,
    no_scopes: Annotated[bool, option("--no-scopes", "Remove all scopes.")] = False,
    metadata: Annotated[
        list[str] | None,
        option("--metadata", "The new metadata, which replaces the old. Repeatable.", metavar="NAME=VALUE"),
    ] = None,
    no_metadata: Annotated[bool, option("--no-metadata", "Remove all metadata.")] = False,
    allow_cidr: Annotated[
        list[str] | None, option("--allow-cidr", "The new networks, which replace the old. Repeatable.", metavar="CIDR")
    ] = None,
    no_allow_cidrs: Annotated[bool, option("--no-allow-cidrs", "Allow the key from every address.")] = False,
    expires: Annotated[Timestamp | None, times("--expires", "When the key expires.")] = None,
    never_expires: Annotated[bool, option("--never-expires", "Remove the expiry.")] = False,
    rotation_interval: RotationInterval = None,
    webhook_url: WebhookUrl = None,
    no_webhook_url: Annotated[bool, option("--no-webhook-url", "Remove the webhook.")] = False,
    no_rotation: Annotated[bool, option("--no-rotation", "Remove the rotation schedule and the webhook.")] = False,
    etag: Annotated[str, option("--etag", "Refuse the update if the key's etag is not this one.")] = "",
    webhook_secret_output: OnlyWebhookSecretOutput = None,
    yes: Yes = False,
) -> None:
    """Update the named fields of a key. Other fields stay as they are; lists are replaced as a whole.

    Before the last working operator's key loses scopes, or gets an expiry or networks, it asks twice on a terminal;
    without a terminal that key needs --yes.

    To change only the interval or only the webhook of a schedule, the calling key also needs the scope
    tumbler:keys:read; to set a webhook, tumbler:keys:rotate. A new webhook's secret is shown as keys create shows it.
    """
    _not_both(scope, "--scope", no_scopes, "--no-scopes")
    _not_both(metadata, "--metadata", no_metadata, "--no-metadata")
    _not_both(allow_cidr, "--allow-cidr", no_allow_cidrs, "--no-allow-cidrs")
    _not_both(expires, "--expires", never_expires, "--never-expires")
    _not_both(webhook_url, "--webhook-url", no_webhook_url, "--no-webhook-url")
    _not_both(rotation_interval, "--rotation-interval", no_rotation, "--no-rotation")
    _not_both(webhook_url, "--webhook-url", no_rotation, "--no-rotation")
    sets_webhook = webhook_url is not None or no_webhook_url
    given = {
        "name": name is not None,
        "owner_id": owner is not None,
        "scopes": scope or no_scopes,
        "metadata": metadata or no_metadata,
        "allowed_cidrs": allow_cidr or no_allow_cidrs,
        "expire_time": expires or never_expires,
        "rotation": rotation_interval is not None or sets_webhook or no_rotation,
    }
    paths = [path for path, is_given in given.items() if is_given]
    narrows = bool(no_scopes or (scope and OPERATOR_SCOPE not in scope) or allow_cidr or expires)
    if not paths:
        raise typer.BadParameter("name at least one field to change.", param_hint="'OPTIONS'")
    request = api_key_service_pb2.UpdateRequest(
        api_key=api_key_pb2.ApiKey(
            id=key_id,
            name=name,
            owner_id=owner,
            scopes=scope,
            metadata=pairs(metadata or (), "--metadata"),
            allowed_cidrs=allow_cidr,
            expire_time=expires,
            rotation=_rotation(rotation_interval, webhook_url),
            etag=etag,
        )
    )
    request.update_mask.paths.extend(paths)
    if not no_rotation and sets_webhook != (rotation_interval is not None):
        _keep_rest_of_rotation(session, request.api_key, sets_webhook)
    if narrows:
        confirm(session, f"Narrow {key_id!a}?", lambda last: last.id == key_id, yes=yes)
    with webhook_receiver(webhook_secret_output, webhook_url) as webhook_file:
        answer = session.call("Update", request)
        lost_secret = lost_webhook_secret(webhook_url or "", answer.api_key.project_id)
        with handing_over(session, answer, webhook_secret=lost_secret):
            secret_in = put(webhook_file, answer, "webhook_secret")
            print_record(session, answer)
            if not session.as_json:
                render.print_webhook_secret(answer.webhook_secret, secret_in)


@command(keys, "rotate", example="tumbler keys rotate 0123456789abcdef --output new.key")
def rotate(
    session: Session,
    key_id: KeyId,
    grace: Grace = None,
    old_key_ends: OldKeyEnds = None,
    expires: Annotated[Timestamp | None, times("--expires", "When the new key expires.")] = None,
    ttl: Annotated[Duration | None, spans("--ttl", "How long the new key is valid, instead of --expires.")] = None,
    request_id: RequestId = None,
    output: Output = None,
    yes: Yes = False,
) -> None:
    """Replace a key with a new one that has the same permissions. The old key works until the new one is first used.

    If several programs share the key, use --grace: otherwise the first program to use the new key ends the old key for
    all of them. If the new key is lost before it is used, rotate the new key by its id.

    The new key is the only line on stdout, or in the file. To replace the old key's file, move the new file over it.
    Without --expires or --ttl the new key gets the lifetime of the old one.
    """
    request = api_key_service_pb2.RotateRequest(
        key_id=key_id,
        request_id=str(request_id or ""),
        **ending(grace, old_key_ends),
        **_expiry(expires, ttl),
    )
    if expires is not None or ttl is not None:
        confirm(session, f"Let the successor of {key_id!a} expire?", lambda last: last.id == key_id, yes=yes)
    with receiver(output) as file:
        answer = session.call("Rotate", request)
        with handing_over(session, answer, key=lost_key(answer.api_key)):
            kept_in = put(file, answer, "key")
            if session.as_json:
                render.print_json(answer)
            else:
                render.print_new_key(answer.key, answer.api_key, answer.secret_omitted, answer.old_api_key, kept_in)


def print_record(session: Session, answer: Any) -> None:
    """Print the key of an answer."""
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_record(answer.api_key)


def _not_both(first: object, first_name: str, second: object, second_name: str) -> None:
    if first is not None and second not in (None, False):
        raise typer.BadParameter(f"cannot be combined with {second_name}.", param_hint=f"'{first_name}'")


def _expiry(expires: Timestamp | None, ttl: Duration | None) -> dict[str, Any]:
    _not_both(expires, "--expires", ttl, "--ttl")
    return {"expire_time": expires} if ttl is None else {"ttl": ttl}


def _rotation(interval: Duration | None, webhook_url: str | None) -> api_key_pb2.Rotation | None:
    if interval is None and webhook_url is None:
        return None
    return api_key_pb2.Rotation(interval=interval, webhook_url=webhook_url)


def _keep_rest_of_rotation(session: Session, changed: api_key_pb2.ApiKey, sets_webhook: bool) -> None:
    """Fill in the fields of a schedule that were not given: Update replaces it as a whole. The etag excludes races."""
    present = session.call("Get", api_key_service_pb2.GetRequest(key_id=changed.id)).api_key
    if not sets_webhook:
        changed.rotation.webhook_url = present.rotation.webhook_url
    elif present.rotation.HasField("interval"):
        changed.rotation.interval.CopyFrom(present.rotation.interval)
    changed.etag = changed.etag or present.etag
