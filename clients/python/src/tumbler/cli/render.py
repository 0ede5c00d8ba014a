"""What the command prints: tables for people, protobuf JSON for programs.

Every text that came from a server or was typed is shown as text: rich's markup in it is not read, and an escape or any
other control character is written out. In errors, which may repeat what was typed, a word as long as a secret is left
out.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, TextIO

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tumbler.cli.errors import Failure
from tumbler.cli.values import span_text
from tumbler.v1.api_key_pb2 import ApiKey, RevokeReason, State
from tumbler.v1.api_key_service_pb2 import ListResponse, VerifyCode, VerifyResponse

__all__ = [
    "print_failure",
    "print_json",
    "print_keys",
    "print_misuse",
    "print_new_key",
    "print_note",
    "print_record",
    "print_verdict",
]

_STATE_STYLES: Final = {
    State.STATE_ACTIVE: "green",
    State.STATE_INACTIVE: "yellow",
    State.STATE_EXPIRED: "red",
    State.STATE_REVOKED: "bold red",
    State.STATE_SUPERSEDED: "magenta",
}
_TITLES: Final = ("KEY", "NAME", "PROJECT", "ENVIRONMENT", "OWNER", "STATE", "SCOPES", "EXPIRES", "LAST USED")
_GAP: Final = 2
_LEAST_WIDTHS: Final = {"SCOPES": 12, "EXPIRES": 10, "LAST USED": 10, "OWNER": 8, "NAME": 12}
_LEAST_WANTED: Final = ("LAST USED", "ENVIRONMENT", "OWNER", "PROJECT", "EXPIRES", "SCOPES")
_LONG_WORD: Final = re.compile(r"\w{40,}")
_WIDE_ENOUGH: Final = 100_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich would exit with code 1, which here means "refused".
        raise BrokenPipeError


def print_json(message: Message) -> None:
    """Print a message as protobuf JSON with the proto's names, its empty fields too."""
    print(
        json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, sort_keys=False
        )
    )


def print_new_key(key: str, api_key: ApiKey, secret_omitted: bool, previous: ApiKey | None = None) -> None:
    """Print a key that was just made, alone on stdout, and all else on stderr."""
    console = _console(sys.stderr)
    if key:
        print(key, flush=True)
        console.print(Text("This key is not shown again: store it now, where secrets are kept.", "bold yellow"))
    elif secret_omitted:
        console.print(
            Text(
                "This request was made before, and its key was shown then; it is stored nowhere. "
                f"If it is lost: tumbler keys rotate {_visible(api_key.id)}",
                "bold yellow",
            )
        )
    else:
        console.print(Text("Everything is in order; nothing was made.", "green"))
    console.print(_record(api_key))
    if previous is not None:
        end = _time(previous.grace_expire_time) if previous.HasField("grace_expire_time") else "now"
        console.print(Text(f"The old key, {_visible(previous.key_prefix)}, works until {end}."))


def print_record(api_key: ApiKey) -> None:
    """Print all that is known of one key."""
    _console(sys.stdout).print(_record(api_key))


def print_keys(page: ListResponse) -> None:
    """Print a page of keys, one on a line, and below it what there is beyond the page."""
    console = _console(sys.stdout)
    rows = list(_rows(page.api_keys))
    if not rows:
        console.print(Text("No keys."))
    elif sys.stdout.isatty():
        console.print(_table(rows, console.width))
    else:
        for line in _plain_lines(rows):
            print(line)
    if page.total_size:
        console.print(Text(f"{page.total_size} in all.", "dim"))
    if page.next_page_token:
        console.print(Text(f"There are more: --page-token {_visible(page.next_page_token)}, or --all.", "dim"))


def print_verdict(answer: VerifyResponse) -> None:
    """Print whether the key is valid, why not, and what is known of it."""
    console = _console(sys.stdout)
    code = VerifyCode.Name(answer.code).removeprefix("VERIFY_CODE_")
    console.print(Text(code, "bold green") if answer.valid else Text(f"not valid: {code}", "bold red"))
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
            ("expires", _optional_time(answer, "expire_time", "never")),
            ("works until", _optional_time(answer, "grace_expire_time", "")),
            ("replaced by", answer.replaced_by_key_id),
        ]
        console.print(_facts(rows))


def print_note(text: str) -> None:
    """Print a remark for people, on stderr."""
    _console(sys.stderr).print(Text(_visible(text)))


def print_failure(failure: Failure, as_json: bool) -> None:
    """Print a failed call on stderr."""
    if as_json:
        print(_without_secrets(json.dumps(failure.as_data(), indent=2)), file=sys.stderr)
        return
    headline = f"{failure.code}, {failure.reason}" if failure.reason not in ("", failure.code) else failure.code
    lines = [f"{headline}: {failure.message}" if failure.message else headline]
    # The server's message usually says them already, for callers who do not read details.
    lines += [f"  {path}: {rule}" for path, rule in failure.violations if rule not in failure.message]
    lines += [f"  {name}: {value}" for name, value in failure.metadata.items()]
    if failure.retry_seconds is not None:
        lines.append(f"  Try again in {failure.retry_seconds:g} s.")
    if failure.hint:
        lines.append(failure.hint)
    _print_error_lines(lines)


def print_misuse(message: str, command: str, as_json: bool) -> None:
    """Print on stderr why the command could not be understood."""
    if as_json:
        data = {"error": {"code": "USAGE", "message": message, "hint": f"{command} --help"}}
        print(_without_secrets(json.dumps(data, indent=2)), file=sys.stderr)
    else:
        _print_error_lines([f"{command}: {message}", f"See: {command} --help"])


def _print_error_lines(lines: Sequence[str]) -> None:
    console = _console(sys.stderr)
    first, *others = (_visible(_without_secrets(line)) for line in lines)
    console.print(Text(first, "bold red"))
    for line in others:
        console.print(Text(line))


def _console(stream: TextIO) -> Console:
    # A pipe has no width: what reads it wants each row on one line.
    return _Console(file=stream, highlight=False, width=None if stream.isatty() else _WIDE_ENOUGH)


def _rows(api_keys: Iterable[ApiKey]) -> Iterator[list[Text]]:
    for api_key in api_keys:
        yield [
            Text(_visible(api_key.key_prefix)),
            Text(_visible(api_key.name)),
            Text(_visible(api_key.project_id)),
            Text(_visible(api_key.environment_id)),
            Text(_visible(api_key.owner_id)),
            _state(api_key),
            Text(_visible(" ".join(api_key.scopes))),
            Text(_optional_time(api_key, "expire_time", "never")),
            Text(_optional_time(api_key, "last_used_time", "never")),
        ]


def _table(rows: Sequence[Sequence[Text]], width: int) -> Table:
    """Make a table that fits into this many cells; a narrow terminal does without the columns that matter least."""
    columns = dict(zip(_TITLES, zip(*rows, strict=True), strict=True))
    widths = {title: max(len(title), *(cell.cell_len for cell in cells)) for title, cells in columns.items()}
    # What names the key for other commands stays whole; the columns that have a least width can be folded down to it.
    least = {title: min(widest, _LEAST_WIDTHS.get(title, widest)) for title, widest in widths.items()}
    for title in _LEAST_WANTED:
        if sum(least.values()) + _GAP * (len(least) - 1) <= width:
            break
        del columns[title], widths[title], least[title]
    excess = sum(widths.values()) + _GAP * (len(widths) - 1) - width
    for title in (title for title in _LEAST_WIDTHS if title in columns):
        cut = max(0, min(excess, widths[title] - least[title]))
        widths[title] -= cut
        excess -= cut
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for title, cells in widths.items():
        table.add_column(title, overflow="fold", width=cells)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _plain_lines(rows: Sequence[Sequence[Text]]) -> Iterator[str]:
    """Yield the same table for a pipe, each row one line; rich would take a millisecond for each."""
    rows = [[Text(title) for title in _TITLES], *rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (cell.plain + " " * (width - cell.cell_len) for cell, width in zip(row, widths, strict=True))
        yield (" " * _GAP).join(padded).rstrip()


def _record(api_key: ApiKey) -> Table:
    revoke_reason = (
        RevokeReason.Name(api_key.revoke_reason).removeprefix("REVOKE_REASON_").lower() if api_key.revoke_reason else ""
    )
    rotation = api_key.rotation
    return _facts(
        [
            ("id", api_key.id),
            ("key", api_key.key_prefix),
            ("name", api_key.name),
            ("project", api_key.project_id),
            ("environment", api_key.environment_id),
            ("owner", api_key.owner_id),
            ("state", _state(api_key)),
            ("scopes", api_key.scopes),
            ("metadata", _pairs(api_key.metadata)),
            ("networks", api_key.allowed_cidrs),
            ("created", _optional_time(api_key, "create_time", "")),
            ("created by", " ".join(filter(None, (api_key.created_by.name, api_key.created_by.key_id)))),
            ("changed", _optional_time(api_key, "update_time", "")),
            ("expires", _optional_time(api_key, "expire_time", "never")),
            ("last used", _optional_time(api_key, "last_used_time", "never")),
            ("rotate every", span_text(rotation.interval.ToTimedelta()) if rotation.HasField("interval") else ""),
            ("rotate next", _optional_time(rotation, "next_time", "")),
            ("replaces", api_key.replaces_key_id),
            ("replaced by", api_key.replaced_by_key_id),
            ("works until", _optional_time(api_key, "grace_expire_time", "")),
            ("revoked", _optional_time(api_key, "revoke_time", "")),
            ("reason", revoke_reason),
            ("comment", api_key.revoke_comment),
            ("etag", api_key.etag),
        ]
    )


def _facts(rows: Iterable[tuple[str, str | Text | Iterable[str]]]) -> Table:
    """Make a table of what is known: rows without a value are left out, several texts take a line each."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        if not isinstance(value, Text):
            texts = [value] if isinstance(value, str) else value
            value = Text("\n".join(map(_visible, texts)))  # noqa: PLW2901 - the same value, made safe
        if value:
            table.add_row(label, value)
    return table


def _state(api_key: ApiKey) -> Text:
    return Text(State.Name(api_key.state).removeprefix("STATE_").lower(), _STATE_STYLES.get(api_key.state, ""))


def _pairs(metadata: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(metadata.items())]


def _optional_time(message: Message, name: str, otherwise: str) -> str:
    return _time(getattr(message, name)) if message.HasField(name) else otherwise


def _time(value: Timestamp) -> str:
    return value.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")


def _visible(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _without_secrets(text: str) -> str:
    return _LONG_WORD.sub("***", text)
