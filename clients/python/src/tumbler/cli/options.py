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
"""Seconds that a new key may stay unused by default. That is time to notice that no program uses it."""
_KEY_ID_TEXT: Final = "The key's id, or the prefix that lists show."


def times(name: str, text: str) -> Any:
    """Declare an option that takes a time."""
    return option(name, text, metavar="TIME", parser=timestamp)


def spans(name: str, text: str, *more_names: str) -> Any:
    """Declare an option that takes a duration."""
    return option(name, text, *more_names, metavar="DURATION", parser=duration)


def names(name: str, text: str, of: Names, metavar: str) -> Any:
    """Declare an option that takes the name of an enum value, with shell completion."""
    return option(name, text, metavar=metavar, parser=of.read, autocompletion=of.complete)


def ending(grace: Duration | None, old_key_ends: str | None) -> dict[str, Any]:
    """Return the fields of a request that end the old key: its end is the first use, unless only a grace was given."""
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
    str,
    option("--key", "Only those of this key: its id, or the prefix that lists show.", metavar="KEY_ID", parser=key_id),
]
ByName = Annotated[str, option("--name", "Find the key by its name instead of KEY_ID.")]
Project = Annotated[str, option("--project", "The project. Default: the calling key's project.", metavar="ID")]
Environment = Annotated[str, option("--environment", "The environment, for example live or test.", metavar="ID")]
RequestId = Annotated[
    UUID | None,
    option(
        "--request-id", "Idempotency key: repeating the call with the same id creates nothing twice.", metavar="UUID"
    ),
]
PageSize = Annotated[
    int, option("--page-size", "Entries per page, at most 1000. Default: 20.", "--limit", min=0, max=_LARGEST)
]
Skip = Annotated[int, option("--skip", "Skip this many keys.", "--offset", min=0, max=_LARGEST)]
PageToken = Annotated[
    str, option("--page-token", "Continue after the previous page; use the same filters.", metavar="TOKEN")
]
Grace = Annotated[
    Duration | None,
    spans(
        "--grace",
        "How long the old key keeps working; 0s ends it now. Default: until the new key is first used, at most 7d.",
        "--grace-period",
    ),
]
OldKeyEnds = Annotated[
    str | None,
    names(
        "--old-key-ends",
        "first-use: when the new key is first used, at the latest after --grace (default 7d); not for a key that "
        "several programs share. grace-end: after --grace (default 1h).",
        OLD_KEY_ENDS,
        "WHEN",
    ),
]
RotationInterval = Annotated[Duration | None, spans("--rotation-interval", "How often the key should be replaced.")]
WebhookUrl = Annotated[
    str | None,
    option(
        "--webhook-url",
        "Receives a webhook when rotation is due and when the key ends. Its receiver can claim the next key.",
        metavar="URL",
    ),
]
Every = Annotated[bool, option("--all", "Fetch all pages.")]
Yes = Annotated[bool, option("--yes", "Do not ask for confirmation.", "-y")]
