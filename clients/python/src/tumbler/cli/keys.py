"""The commands that manage keys: each builds one request, calls the server and prints the answer."""

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
    name="keys", help="Create, read, change, end, verify and watch keys.", pretty_exceptions_show_locals=False
)

_ORDERS = ("create_time", "name", "expire_time", "last_used_time")


@command(keys, "create", example="tumbler keys create --project acme --name ci-job --scope orders:read --output ci.key")
def create(
    session: Session,
    project: Annotated[str, option("--project", "The project that the key belongs to.", metavar="ID")],
    environment: Environment = "",
    name: Annotated[str, option("--name", "What people call the key, 3-255 characters.")] = "",
    owner: Annotated[str, option("--owner", "On whose behalf the key acts.", metavar="ID")] = "",
    scope: Annotated[list[str] | None, option("--scope", "What the key may do. Repeatable.")] = None,
    metadata: Annotated[
        list[str] | None, option("--metadata", "Told to whoever verifies the key. Repeatable.", metavar="NAME=VALUE")
    ] = None,
    allow_cidr: Annotated[
        list[str] | None,
        option("--allow-cidr", "A network that the key may be used from. Repeatable.", metavar="CIDR"),
    ] = None,
    expires: Annotated[Timestamp | None, times("--expires", "When the key ends.")] = None,
    ttl: Annotated[Duration | None, spans("--ttl", "How long the key lives, instead of --expires.")] = None,
    prefix: Annotated[str, option("--prefix", "How the key's text begins, acme_live for example.")] = "",
    rotation_interval: RotationInterval = None,
    webhook_url: WebhookUrl = None,
    request_id: RequestId = None,
    validate_only: Annotated[bool, option("--validate-only", "Check everything and make nothing.")] = False,
    output: Output = None,
    webhook_secret_output: WebhookSecretOutput = None,
) -> None:
    """Make a key and show it, this once, or put it into a file.

    Without --output the key is the only line on stdout: a pipe can take it to where secrets are kept. Where a new
    --webhook-url brings a secret of its own, to check its webhooks with, that is shown, this once, on a line of stderr;
    with --json it is the field webhook_secret.
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
    """Show what is known of a key, in whatever state it is. Its secret is stored nowhere."""
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
    scope: Annotated[str, option("--scope", "Only keys that carry exactly this scope.")] = "",
    search: Annotated[str, option("--search", "Only keys with this text in the name or the key's beginning.")] = "",
    order_by: Annotated[
        str,
        option(
            "--order-by",
            "create_time (newest first, if left out), name, expire_time or last_used_time; then ' asc' or ' desc'.",
            metavar="FIELD",
            autocompletion=beginning_with(_ORDERS),
        ),
    ] = "",
    page_size: PageSize = 0,
    skip: Skip = 0,
    page_token: PageToken = "",
    every: Every = False,
    total: Annotated[bool, option("--total", "Count all keys that fit.")] = False,
) -> None:
    """List keys, a page at a time, revoked ones too."""
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
    scope: Annotated[list[str] | None, option("--scope", "The new list of scopes. Repeatable.")] = None,
    no_scopes: Annotated[bool, option("--no-scopes", "Take all scopes away.")] = False,
    metadata: Annotated[
        list[str] | None, option("--metadata", "The new metadata, all of it. Repeatable.", metavar="NAME=VALUE")
    ] = None,
    no_metadata: Annotated[bool, option("--no-metadata", "Take all metadata away.")] = False,
    allow_cidr: Annotated[
        list[str] | None, option("--allow-cidr", "The new list of networks. Repeatable.", metavar="CIDR")
    ] = None,
    no_allow_cidrs: Annotated[bool, option("--no-allow-cidrs", "Let the key be used from anywhere.")] = False,
    expires: Annotated[Timestamp | None, times("--expires", "When the key ends.")] = None,
    never_expires: Annotated[bool, option("--never-expires", "Let the key live for ever.")] = False,
    rotation_interval: RotationInterval = None,
    webhook_url: WebhookUrl = None,
    no_webhook_url: Annotated[bool, option("--no-webhook-url", "Tell nobody.")] = False,
    no_rotation: Annotated[bool, option("--no-rotation", "End the key's schedule, and tell nobody.")] = False,
    etag: Annotated[str, option("--etag", "Refuse if the key has changed since it had this etag.")] = "",
    webhook_secret_output: OnlyWebhookSecretOutput = None,
    yes: Yes = False,
) -> None:
    """Change fields of a key; what is not named stays. Lists are replaced as a whole.

    Before the last operator's key loses scopes, or gets an expiry or networks, it asks twice on a terminal; elsewhere
    that one needs --yes.

    To change a schedule's interval or its webhook and keep the other, the calling key also needs the scope
    tumbler:keys:read; to set a webhook, tumbler:keys:rotate. A new one's secret is shown as keys create shows it.
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
        raise typer.BadParameter("say what to change.", param_hint="'OPTIONS'")
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
    expires: Annotated[Timestamp | None, times("--expires", "When the new key ends.")] = None,
    ttl: Annotated[Duration | None, spans("--ttl", "How long the new key lives, instead of --expires.")] = None,
    request_id: RequestId = None,
    output: Output = None,
) -> None:
    """Replace a key by a new one of the same rights, and let the old one work until the new one is first used.

    Where several programs share the key, the first to use the new one would end the old one for all: give --grace.
    If the new key is lost before it is used, rotate it in its turn, by its id.

    The new key is the only line on stdout, or in the file: to replace the file of the old one, move the new one over
    it. Without --expires or --ttl it lives as long as the old one was to live.
    """
    request = api_key_service_pb2.RotateRequest(
        key_id=key_id,
        request_id=str(request_id or ""),
        **ending(grace, old_key_ends),
        **_expiry(expires, ttl),
    )
    with receiver(output) as file:
        answer = session.call("Rotate", request)
        with handing_over(session, answer, key=lost_key(answer.api_key)):
            kept_in = put(file, answer, "key")
            if session.as_json:
                render.print_json(answer)
            else:
                render.print_new_key(answer.key, answer.api_key, answer.secret_omitted, answer.old_api_key, kept_in)


def print_record(session: Session, answer: Any) -> None:
    """Print the key that a call has answered with."""
    if session.as_json:
        render.print_json(answer)
    else:
        render.print_record(answer.api_key)


def _not_both(first: object, first_name: str, second: object, second_name: str) -> None:
    if first is not None and second not in (None, False):
        raise typer.BadParameter(f"not together with {second_name}.", param_hint=f"'{first_name}'")


def _expiry(expires: Timestamp | None, ttl: Duration | None) -> dict[str, Any]:
    _not_both(expires, "--expires", ttl, "--ttl")
    return {"expire_time": expires} if ttl is None else {"ttl": ttl}


def _rotation(interval: Duration | None, webhook_url: str | None) -> api_key_pb2.Rotation | None:
    if interval is None and webhook_url is None:
        return None
    return api_key_pb2.Rotation(interval=interval, webhook_url=webhook_url)


def _keep_rest_of_rotation(session: Session, changed: api_key_pb2.ApiKey, sets_webhook: bool) -> None:
    """Fill in what was not typed of a schedule: Update replaces all of it. The etag keeps others out meanwhile."""
    present = session.call("Get", api_key_service_pb2.GetRequest(key_id=changed.id)).api_key
    if not sets_webhook:
        changed.rotation.webhook_url = present.rotation.webhook_url
    elif present.rotation.HasField("interval"):
        changed.rotation.interval.CopyFrom(present.rotation.interval)
    changed.etag = changed.etag or present.etag
