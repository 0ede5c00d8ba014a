"""Parses and formats values of the command line: durations, times, pairs, enum names and key ids.

A parser raises `typer.BadParameter` for invalid text, and typer adds the option's name. No message repeats text that
could be a key.
"""

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Final

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.timestamp_pb2 import Timestamp

from tumbler import keyformat
from tumbler.v1.api_key_pb2 import OldKeyEnds, RevokeReason, State
from tumbler.v1.event_pb2 import DeliveryState, KeyEventType

__all__ = [
    "DELIVERY_STATES",
    "EVENT_TYPES",
    "REASONS",
    "STATES",
    "Names",
    "beginning_with",
    "duration",
    "key_id",
    "moment",
    "pairs",
    "span",
    "span_text",
    "timestamp",
]

_SPAN = re.compile(r"(\d{1,18})(ms|s|m|h|d)", re.ASCII)
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# The maximum of a protobuf Duration.
_LONGEST_SPAN = timedelta(seconds=315_576_000_000)

_TIME = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[Tt ](?P<clock>\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d+))?(?P<offset>[Zz]|[+-]\d\d:\d\d))?",
    re.ASCII,
)

_KEY_PREFIX = re.compile(rf"{keyformat.PREFIX_PATTERN.pattern}_([0-9A-Za-z]{{{keyformat.ID_LENGTH}}})_", re.ASCII)


def span(text: str) -> timedelta:
    """Parse a duration: a whole number and one of ms, s, m, h, d."""
    match = _SPAN.fullmatch(text)
    if match:
        number, unit = match.groups()
        try:
            value = timedelta(**{_UNITS[unit]: int(number)})
        except OverflowError:
            value = timedelta.max
        if value <= _LONGEST_SPAN:
            return value
    raise typer.BadParameter("write a duration as 500ms, 90s, 15m, 1h or 7d.")


def span_text(value: timedelta) -> str:
    """Format a duration as `span` reads it, in the largest unit that leaves no remainder."""
    milliseconds = value // timedelta(milliseconds=1)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def duration(text: str) -> Duration:
    """Parse a duration into protobuf's message."""
    result = Duration()
    result.FromTimedelta(span(text))
    return result


def timestamp(text: str) -> Timestamp:
    """Parse a time: RFC 3339, or a date for midnight UTC. Digits below the microsecond are dropped."""
    match = _TIME.fullmatch(text)
    try:
        if match:
            clock = match["clock"] or "00:00:00"
            fraction = (match["fraction"] or "")[:6].ljust(6, "0")
            offset = (match["offset"] or "Z").upper().replace("Z", "+00:00")
            result = Timestamp()
            result.FromDatetime(datetime.fromisoformat(f"{match['day']}T{clock}.{fraction}{offset}"))
            return result
    except (OverflowError, ValueError):
        pass
    raise typer.BadParameter("write a time as 2027-01-31T00:00:00Z, or as 2027-01-31 for midnight UTC.")


def moment(text: str) -> Timestamp:
    """Parse a time as `timestamp` does, or a duration: that long ago by this machine's clock."""
    if _SPAN.fullmatch(text):
        result = Timestamp()
        try:
            result.FromDatetime(datetime.now(timezone.utc) - span(text))
        except OverflowError:
            raise typer.BadParameter("is too far in the past.") from None
        return result
    return timestamp(text)


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """Parse the `name=value` pairs of a repeatable option. A value may contain equals signs."""
    result: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter("write a pair as name=value.", param_hint=f"'{option}'")
        if name in result:
            raise typer.BadParameter(f"{name} is given twice.", param_hint=f"'{option}'")
        result[name] = value
    return result


def _spoken(name: str) -> str:
    return name.lower().replace("_", "-")


class Names:
    """The names of an enum as people write them: without their prefix, in lower case, with hyphens."""

    def __init__(self, enum: EnumTypeWrapper, *prefixes: str) -> None:
        self._names = {}
        for name, number in enum.items():
            short = name
            for prefix in prefixes:
                short = short.removeprefix(prefix)
            if number != 0:
                self._names[_spoken(short)] = name
        self._spoken = {enum.Value(name): spoken for spoken, name in self._names.items()}
        self.complete = beginning_with(self._names)

    def read(self, text: str) -> str:
        """Return the enum's own name for an argument."""
        name = self._names.get(_spoken(text))
        if name is None:
            raise typer.BadParameter(f"must be one of {', '.join(self._names)}.")
        return name

    def write(self, number: int) -> str:
        """Format a value. A value that only a newer server knows becomes its number, and the unspecified one ''."""
        return self._spoken.get(number, str(number) if number else "")


def beginning_with(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a shell completion that offers the choices beginning with the text so far."""
    known = list(choices)

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in known if choice.startswith(incomplete)]

    return complete


STATES: Final = Names(State, "STATE_")
OLD_KEY_ENDS: Final = Names(OldKeyEnds, "OLD_KEY_ENDS_", "AT_", "ON_")
REASONS: Final = Names(RevokeReason, "REVOKE_REASON_")
EVENT_TYPES: Final = Names(KeyEventType, "KEY_EVENT_TYPE_")
DELIVERY_STATES: Final = Names(DeliveryState, "DELIVERY_STATE_")


def key_id(text: str) -> str:
    """Parse a key's id, or the prefix that lists show (`acme_live_<id>_`), into the id. A whole key is refused."""
    match = _KEY_PREFIX.match(text)
    if match is None and len(text) <= keyformat.MAX_LENGTH - keyformat.SECRET_LENGTH:
        return text
    if match is None or match.end() < len(text):
        raise typer.BadParameter(
            "use the key's id, not the whole key. If this was a real key, your shell's history may now contain it: "
            "rotate it."
        )
    return match[1]
