"""The output of the command: tables for people, protobuf JSON for programs.

Text from a server or the command line is shown as plain text: rich's markup is not interpreted, and control characters
are written as escapes. In errors, which may repeat an argument, every word as long as a secret is replaced.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from tumbler.cli.errors import Failure
from tumbler.cli.table import Layout
from tumbler.cli.text import console, optional_time, time, visible, without_secrets
from tumbler.cli.values import DELIVERY_STATES, EVENT_TYPES, REASONS, STATES, span_text
from tumbler.v1.api_key_pb2 import ApiKey, State
from tumbler.v1.api_key_service_pb2 import (
    ListDeliveriesResponse,
    ListEventsResponse,
    ListResponse,
    RotateWebhookSecretResponse,
    VerifyCode,
    VerifyResponse,
)
from tumbler.v1.event_pb2 import DeliveryState, KeyEvent, KeyEventType, WebhookDelivery

__all__ = [
    "RESET",
    "event_line",
    "event_type",
    "print_deliveries",
    "print_delivery",
    "print_events",
    "print_failure",
    "print_json",
    "print_json_line",
    "print_keys",
    "print_misuse",
    "print_new_key",
    "print_note",
    "print_record",
    "print_rotated_webhook_secret",
    "print_verdict",
    "print_webhook_secret",
    "state",
    "who",
]


RESET: Final = "Changes before this point may be missing: the server can no longer deliver them."
"""The note for people when the stream of changes has a gap."""

_STATE_STYLES: Final = {
    State.STATE_ACTIVE: "green",
    State.STATE_INACTIVE: "yellow",
    State.STATE_EXPIRED: "red",
    State.STATE_REVOKED: "bold red",
    State.STATE_SUPERSEDED: "magenta",
}
_TYPE_STYLES: Final = {
    KeyEventType.KEY_EVENT_TYPE_CREATED: "green",
    KeyEventType.KEY_EVENT_TYPE_ACTIVATED: "green",
    KeyEventType.KEY_EVENT_TYPE_DEACTIVATED: "yellow",
    KeyEventType.KEY_EVENT_TYPE_REVOKED: "bold red",
    KeyEventType.KEY_EVENT_TYPE_ROTATED: "magenta",
    KeyEventType.KEY_EVENT_TYPE_ROTATION_OVERDUE: "red",
    KeyEventType.KEY_EVENT_TYPE_EXPIRING: "yellow",
    KeyEventType.KEY_EVENT_TYPE_FIRST_USED: "green",
}
_DELIVERY_STYLES: Final = {
    DeliveryState.DELIVERY_STATE_PENDING: "yellow",
    DeliveryState.DELIVERY_STATE_DELIVERED: "green",
    DeliveryState.DELIVERY_STATE_FAILED: "bold red",
    DeliveryState.DELIVERY_STATE_ENDPOINT_OFF: "red",
}
_KEYS: Final = Layout(
    titles=("KEY", "NAME", "PROJECT", "ENVIRONMENT", "OWNER", "STATE", "SCOPES", "EXPIRES", "LAST USED"),
    least_widths={"SCOPES": 12, "EXPIRES": 10, "LAST USED": 10, "OWNER": 8, "NAME": 12},
    least_wanted=("LAST USED", "ENVIRONMENT", "OWNER", "PROJECT", "EXPIRES", "SCOPES"),
)
_EVENTS: Final = Layout(
    titles=("REVISION", "TIME", "TYPE", "KEY", "PROJECT", "ENVIRONMENT", "ACTOR", "DETAIL"),
    least_widths={"DETAIL": 12, "ACTOR": 16, "TIME": 10},
    least_wanted=("ENVIRONMENT", "REVISION", "PROJECT", "DETAIL"),
)
_DELIVERIES: Final = Layout(
    titles=("TIME", "TYPE", "KEY", "STATE", "ATTEMPTS", "LAST ANSWER", "NEXT ATTEMPT", "DELIVERY"),
    least_widths={"LAST ANSWER": 12, "TIME": 10, "NEXT ATTEMPT": 12},
    least_wanted=("NEXT ATTEMPT", "TIME", "ATTEMPTS", "KEY", "LAST ANSWER", "TYPE"),
)


def print_json(message: Message) -> None:
    """Print a message as protobuf JSON with the proto's field names. Include empty fields."""
    print(_json(message, indent=2))


def print_json_line(message: Message) -> None:
    """Print a message on one line, and flush."""
    print(_json(message, indent=None), flush=True)


def print_new_key(
    key: str, api_key: ApiKey, secret_omitted: bool, previous: ApiKey | None = None, kept_in: str = ""
) -> None:
    """Print a new key as the only line on stdout, and everything else on stderr. Do not print a key in a file."""
    notes = console(sys.stderr)
    if kept_in:
        notes.print(Text(f"The new key is in {visible(kept_in)}.", "green"))
    elif key:
        print(key, flush=True)
        notes.print(Text("This key is not shown again: store it now in a safe place.", "bold yellow"))
    elif secret_omitted:
        notes.print(
            Text(
                "This request was already made, and its key was shown then; the key is not stored. "
                f"If it is lost, rotate it: tumbler keys rotate {visible(api_key.id)}",
                "bold yellow",
            )
        )
    else:
        notes.print(Text("The request is valid; no key was created.", "green"))
    notes.print(_record(api_key))
    if previous is not None:
        notes.print(Text(f"The old key, {visible(previous.key_prefix)}, works until {_end(previous, 'the new one')}."))


def print_webhook_secret(secret: str, kept_in: str = "") -> None:
    """Print the secret of a new webhook, or the name of its file. Print nothing if there is none."""
    if kept_in:
        console(sys.stderr).print(Text(f"The webhook's secret is in {visible(kept_in)}.", "green"))
    elif secret:
        notes = console(sys.stderr)
        notes.print(Text(f"webhook secret: {visible(secret)}"))
        notes.print(Text("It is not shown again: give it to the receiver of the webhooks.", "bold yellow"))


def print_rotated_webhook_secret(answer: RotateWebhookSecretResponse, kept_in: str = "") -> None:
    """Print a webhook's new secret as the only line on stdout, or its file. Print the old one's end on stderr."""
    notes = console(sys.stderr)
    if kept_in:
        notes.print(Text(f"The new secret is in {visible(kept_in)}.", "green"))
    else:
        print(answer.webhook_secret, flush=True)
        notes.print(Text("It is not shown again: give it to the receiver of the webhooks.", "bold yellow"))
    notes.print(Text(f"The old secret also signs until {optional_time(answer, 'previous_expire_time', 'now')}."))


def print_record(api_key: ApiKey) -> None:
    """Print the whole record of a key."""
    console(sys.stdout).print(_record(api_key))


def print_keys(page: ListResponse) -> None:
    """Print a page of keys, one on a line, and below it the total and the next page's token."""
    rows = list(_key_rows(page.api_keys))
    if rows:
        _KEYS.print(rows)
    else:
        print("No keys.")
    if page.total_size:
        _print_below(f"{page.total_size} in total.")
    if page.next_page_token:
        _print_below(f"More: --page-token {page.next_page_token}, or --all.")


def print_events(page: ListEventsResponse, since: Timestamp | None) -> None:
    """Print a page of events, one on a line, and below it how to continue with the same filter, `since`."""
    rows = list(_event_rows(page.events))
    if rows:
        _EVENTS.print(rows)
    else:
        print("No events.")
    if page.next_page_token:
        # A token belongs to its filter, and the same duration would mean another time by then.
        filtered = f"--since {since.ToJsonString()} " if since else ""
        _print_below(f"More: {filtered}--page-token {page.next_page_token}, or --all.")


def print_deliveries(page: ListDeliveriesResponse) -> None:
    """Print a page of deliveries, one on a line, and below it how to continue."""
    rows = list(_delivery_rows(page.deliveries))
    if rows:
        _DELIVERIES.print(rows)
    else:
        print("No deliveries.")
    if page.next_page_token:
        _print_below(f"More: --page-token {page.next_page_token}, or --all.")


def print_delivery(delivery: WebhookDelivery) -> None:
    """Print all fields of a delivery."""
    rows: list[tuple[str, str | Text]] = [
        ("id", delivery.id),
        ("type", delivery.type),
        ("key id", delivery.key_id),
        ("project", delivery.project_id),
        ("url", delivery.url),
        ("state", _delivery_state(delivery)),
        ("attempts", str(delivery.attempts)),
        ("created", optional_time(delivery, "create_time", "")),
        ("last attempt", optional_time(delivery, "last_attempt_time", "never")),
        ("last answer", _last_answer(delivery)),
        ("next attempt", optional_time(delivery, "next_attempt_time", "")),
    ]
    console(sys.stdout).print(_facts(rows))


def event_line(event: KeyEvent) -> Text:
    """Return a line that says, without table headings, what happened when, to which key, by whom."""
    place = "/".join(filter(None, (event.project_id, event.environment_id)))
    kind = event_type(event)
    kind.pad_right(max(0, len("rotation-overdue") - len(kind)))
    words = [
        Text(time(event.time)),
        kind,
        Text(visible(event.key_id)),
        Text(visible(place)),
        Text(f"by {visible(who(event))}"),
        Text(visible(" ".join(_more(event))), "dim"),
    ]
    return Text("  ").join(word for word in words if word)


def print_verdict(answer: VerifyResponse) -> None:
    """Print whether the key is valid, the reason if not, and its fields."""
    answers = console(sys.stdout)
    code = VerifyCode.Name(answer.code).removeprefix("VERIFY_CODE_")
    answers.print(Text(code, "bold green") if answer.valid else Text(f"not valid: {code}", "bold red"))
    if answer.key_id:
        rows = [
            ("id", answer.key_id),
            ("name", answer.name),
            ("project", answer.project_id),
            ("environment", answer.environment_id),
            ("owner", answer.owner_id),
            ("scopes", answer.scopes),
            ("metadata", _pairs(answer.metadata)),
            ("networks", answer.allowed_cidrs),
            ("expires", optional_time(answer, "expire_time", "never")),
            ("works until", optional_time(answer, "grace_expire_time", "")),
            ("replaced by", answer.replaced_by_key_id),
        ]
        answers.print(_facts(rows))


def print_note(text: str) -> None:
    """Print a note for people on stderr."""
    console(sys.stderr).print(Text(visible(text)))


def print_failure(failure: Failure, as_json: bool) -> None:
    """Print a failed call on stderr."""
    if as_json:
        print(without_secrets(json.dumps(failure.as_data(), indent=2)), file=sys.stderr)
        return
    headline = f"{failure.code}, {failure.reason}" if failure.reason not in ("", failure.code) else failure.code
    lines = [f"{headline}: {failure.message}" if failure.message else headline]
    # The server's message usually includes them, for callers who do not read details.
    lines += [f"  {path}: {rule}" for path, rule in failure.violations if rule not in failure.message]
    lines += [f"  {name}: {value}" for name, value in failure.metadata.items()]
    if failure.retry_seconds is not None:
        lines.append(f"  Try again in {failure.retry_seconds:g} s.")
    if failure.hint:
        lines.append(failure.hint)
    _print_error_lines(lines)


def print_misuse(message: str, command: str, as_json: bool) -> None:
    """Print a usage error on stderr."""
    if as_json:
        data = {"error": {"code": "USAGE", "message": message, "hint": f"{command} --help"}}
        print(without_secrets(json.dumps(data, indent=2)), file=sys.stderr)
    else:
        _print_error_lines([f"{command}: {message}", f"See: {command} --help"])


def _print_error_lines(lines: Sequence[str]) -> None:
    notes = console(sys.stderr)
    first, *others = (visible(without_secrets(line)) for line in lines)
    notes.print(Text(first, "bold red"))
    for line in others:
        notes.print(Text(line))


def state(api_key: ApiKey) -> Text:
    """Return the word for a key's state."""
    return Text(STATES.write(api_key.state), _STATE_STYLES.get(api_key.state, ""))


def event_type(event: KeyEvent) -> Text:
    """Return the word for the type of an event."""
    return Text(EVENT_TYPES.write(event.type), _TYPE_STYLES.get(event.type, ""))


def who(event: KeyEvent) -> str:
    """Return the name and the id of the key that made a change."""
    return " ".join(filter(None, (event.actor.name, event.actor.key_id)))


def _json(message: Message, indent: int | None) -> str:
    return json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        sort_keys=False,
        indent=indent,
    )


def _print_below(text: str) -> None:
    console(sys.stdout).print(Text(visible(text), "dim"))


def _key_rows(api_keys: Iterable[ApiKey]) -> Iterator[list[Text]]:
    for api_key in api_keys:
        yield [
            Text(visible(api_key.key_prefix)),
            Text(visible(api_key.name)),
            Text(visible(api_key.project_id)),
            Text(visible(api_key.environment_id)),
            Text(visible(api_key.owner_id)),
            state(api_key),
            Text(visible(" ".join(api_key.scopes))),
            Text(optional_time(api_key, "expire_time", "never")),
            Text(optional_time(api_key, "last_used_time", "never")),
        ]


def _more(event: KeyEvent) -> list[str]:
    """Return the other fields of an event as pairs. The address and the request id are included if known."""
    call = {"client_address": event.client_address, "request_id": event.request_id}
    return [*_pairs(event.detail), *_pairs({name: value for name, value in call.items() if value})]


def _event_rows(events: Iterable[KeyEvent]) -> Iterator[list[Text]]:
    for event in events:
        yield [
            Text(str(event.revision)),
            Text(time(event.time)),
            event_type(event),
            Text(visible(event.key_id)),
            Text(visible(event.project_id)),
            Text(visible(event.environment_id)),
            Text(visible(who(event))),
            Text(visible(" ".join(_more(event)))),
        ]


def _delivery_rows(deliveries: Iterable[WebhookDelivery]) -> Iterator[list[Text]]:
    for delivery in deliveries:
        yield [
            Text(optional_time(delivery, "create_time", "")),
            Text(visible(delivery.type)),
            Text(visible(delivery.key_id)),
            _delivery_state(delivery),
            Text(str(delivery.attempts)),
            Text(visible(_last_answer(delivery))),
            Text(optional_time(delivery, "next_attempt_time", "")),
            Text(visible(delivery.id)),
        ]


def _delivery_state(delivery: WebhookDelivery) -> Text:
    return Text(DELIVERY_STATES.write(delivery.state), _DELIVERY_STYLES.get(delivery.state, ""))


def _last_answer(delivery: WebhookDelivery) -> str:
    code = str(delivery.last_status_code or "")
    return delivery.last_error if code in delivery.last_error else f"{code} {delivery.last_error}".strip()


def _record(api_key: ApiKey) -> Table:
    rotation = api_key.rotation
    return _facts(
        [
            ("id", api_key.id),
            ("key", api_key.key_prefix),
            ("name", api_key.name),
            ("project", api_key.project_id),
            ("environment", api_key.environment_id),
            ("owner", api_key.owner_id),
            ("state", state(api_key)),
            ("scopes", api_key.scopes),
            ("metadata", _pairs(api_key.metadata)),
            ("networks", api_key.allowed_cidrs),
            ("created", optional_time(api_key, "create_time", "")),
            ("created by", " ".join(filter(None, (api_key.created_by.name, api_key.created_by.key_id)))),
            ("changed", optional_time(api_key, "update_time", "")),
            ("expires", optional_time(api_key, "expire_time", "never")),
            ("last used", optional_time(api_key, "last_used_time", "never")),
            ("rotate every", span_text(rotation.interval.ToTimedelta()) if rotation.HasField("interval") else ""),
            ("rotate next", optional_time(rotation, "next_time", "")),
            ("webhook", rotation.webhook_url),
            ("replaces", api_key.replaces_key_id),
            ("replaced by", api_key.replaced_by_key_id),
            ("works until", _end(api_key, "the new key") if api_key.HasField("grace_expire_time") else ""),
            ("revoked", optional_time(api_key, "revoke_time", "")),
            ("reason", REASONS.write(api_key.revoke_reason)),
            ("comment", api_key.revoke_comment),
            ("etag", api_key.etag),
        ]
    )


def _end(api_key: ApiKey, successor: str) -> str:
    """Return when a rotated key ends, and what ends it."""
    end = time(api_key.grace_expire_time) if api_key.HasField("grace_expire_time") else "now"
    return f"{successor} is first used, at the latest {end}" if api_key.grace_ends_on_first_use else end


def _facts(rows: Iterable[tuple[str, str | Text | Iterable[str]]]) -> Table:
    """Return a table of fields. Rows without a value are left out. Several texts take one line each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        if not isinstance(value, Text):
            texts = [value] if isinstance(value, str) else value
            value = Text("\n".join(map(visible, texts)))  # noqa: PLW2901 - the same value, made safe
        if value:
            table.add_row(label, value)
    return table


def _pairs(metadata: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(metadata.items())]
