"""The options and arguments that several commands take."""

from typing import Annotated, Any, Final
from uuid import UUID

import typer
from google.protobuf.duration_pb2 import Duration

from tumbler.cli.flags import option
from tumbler.cli.values import OLD_KEY_ENDS, Names, duration, key_id, timestamp

__all__ = [
    "ByName",
    "Environment",
    "Every",
    "Grace",
    "KeyId",
    "OfKey",
    "OldKeyEnds",
    "OptionalKeyId",
    "PageSize",
    "PageToken",
    "Project",
    "RequestId",
    "RotationInterval",
    "Skip",
    "WebhookUrl",
    "Yes",
    "ending",
    "names",
    "spans",
    "times",
]

_LARGEST: Final = 2**31 - 1
_LONGEST_WAIT: Final = 7 * 86_400
"""Seconds that a new key may be left unused, unless something else is typed: time to notice that it is used nowhere."""
_KEY_ID_TEXT: Final = "The key's id, or what lists show of it."


def times(name: str, text: str) -> Any:
    """Declare an option that takes a moment."""
    return option(name, text, metavar="TIME", parser=timestamp)


def spans(name: str, text: str, *more_names: str) -> Any:
    """Declare an option that takes a span of time."""
    return option(name, text, *more_names, metavar="SPAN", parser=duration)


def names(name: str, text: str, of: Names, metavar: str) -> Any:
    """Declare an option that takes one of an enum's names, which the shell can complete."""
    return option(name, text, metavar=metavar, parser=of.read, autocompletion=of.complete)


def ending(grace: Duration | None, old_key_ends: str | None) -> dict[str, Any]:
    """Return what a request says of the old key's end: its first use is what counts, unless only a grace was typed."""
    if old_key_ends is None and grace is None:
        old_key_ends = "OLD_KEY_ENDS_ON_FIRST_USE"
    if grace is None and old_key_ends == "OLD_KEY_ENDS_ON_FIRST_USE":
        grace = Duration(seconds=_LONGEST_WAIT)
    return {"grace_period": grace, "old_key_ends": old_key_ends}


KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", parser=key_id, help=_KEY_ID_TEXT, show_default=False)]
OptionalKeyId = Annotated[
    str | None, typer.Argument(metavar="KEY_ID", parser=key_id, help=_KEY_ID_TEXT, show_default=False)
]
OfKey = Annotated[
    str, option("--key", "Only those of this key: its id, or what lists show.", metavar="KEY_ID", parser=key_id)
]
ByName = Annotated[str, option("--name", "Find the key by its name, instead of KEY_ID.")]
Project = Annotated[str, option("--project", "The project; the calling key's own, if left out.", metavar="ID")]
Environment = Annotated[str, option("--environment", "The environment, live or test for example.", metavar="ID")]
RequestId = Annotated[
    UUID | None,
    option("--request-id", "Makes the call safe to repeat: the same id makes nothing twice.", metavar="UUID"),
]
PageSize = Annotated[
    int, option("--page-size", "How many a page: 20, if left out; at most 1000.", "--limit", min=0, max=_LARGEST)
]
Skip = Annotated[int, option("--skip", "Leave out so many keys first.", "--offset", min=0, max=_LARGEST)]
PageToken = Annotated[
    str, option("--page-token", "Where to go on, from the page before; with the same filters.", metavar="TOKEN")
]
Grace = Annotated[
    Duration | None,
    spans(
        "--grace",
        "How long the old key works on; 0s ends it now. If left out: until the new key is first used, at most 7d.",
        "--grace-period",
    ),
]
OldKeyEnds = Annotated[
    str | None,
    names(
        "--old-key-ends",
        "first-use: when the new key is first used, at most after --grace (7d, if left out); not for a key that "
        "several programs share. grace-end: after --grace (1h, if left out).",
        OLD_KEY_ENDS,
        "WHEN",
    ),
]
RotationInterval = Annotated[Duration | None, spans("--rotation-interval", "How often the key should be replaced.")]
WebhookUrl = Annotated[
    str | None,
    option(
        "--webhook-url",
        "Who is told when that is due, and when the key ends. Whoever reads it can claim the next key.",
        metavar="URL",
    ),
]
Every = Annotated[bool, option("--all", "Follow every page.")]
Yes = Annotated[bool, option("--yes", "Do not ask.", "-y")]
