"""What can go wrong, in the domain's own terms. ``rpc.status`` gives each its gRPC status; nothing here knows of it.

No message or detail ever holds a secret or text of a caller's that could hold one: they are sent to callers and logged.
"""

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Violation:
    """One broken rule: the field's path as in the proto (``api_key.scopes[3]``), and the rule."""

    field: str
    rule: str


# gRPC's clients take 8 KiB of metadata: what is larger reaches a caller as RESOURCE_EXHAUSTED. An InvalidFields stays
# below 6 KiB: its message is sent percent-encoded, three bytes for one, and again in its details, as base64.
_SHOWN_IN_A_MESSAGE = 200
_SHOWN_OF_A_FIELD = 256
_SHOWN_OF_A_RULE = 256
_MOST_SHOWN = 100
_AROUND = 8
_ROOM = 2_000
"""Bytes of all violations together; of each, what protobuf puts around it."""


class TumblerError(Exception):
    """The base of all that a caller may be told. ``detail`` becomes the metadata of ErrorInfo."""

    def __init__(self, message: str, /, **detail: str) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidFields(TumblerError):
    """One or more fields break a rule. ``violations`` are the first, as many as an answer has room for.

    Where that is not all of them, the last one names no field and says how many more there are.
    """

    def __init__(self, violations: Sequence[Violation]) -> None:
        rules = [_clipped(f"{violation.field}: {violation.rule}", _SHOWN_IN_A_MESSAGE) for violation in violations[:3]]
        more = [f"and {len(violations) - 3} more"] if len(violations) > 3 else []
        super().__init__("; ".join(rules + more))
        clipped = [
            Violation(_clipped(violation.field, _SHOWN_OF_A_FIELD), _clipped(violation.rule, _SHOWN_OF_A_RULE))
            for violation in violations[:_MOST_SHOWN]
        ]
        sizes = itertools.accumulate(len(f"{each.field}{each.rule}".encode()) + _AROUND for each in clipped)
        shown = [each for each, size in zip(clipped, sizes, strict=True) if size <= _ROOM]
        left = len(violations) - len(shown)
        self.violations = (*shown, *([Violation("", f"and {left:,} more")] if left else []))


class Undecodable(TumblerError):
    """The request's bytes are not a message of the expected type."""

    def __init__(self, message_type: str) -> None:
        super().__init__(f"the request cannot be decoded as {message_type}", message=message_type)


class Unauthenticated(TumblerError):
    """No key came with the call, or one that is not accepted; it is not said which."""

    def __init__(self) -> None:
        super().__init__("send a valid API key of this service as `authorization: Bearer <key>`")


class ScopeMissing(TumblerError):
    """The calling key lacks the scope that the RPC asks for."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the calling key lacks the scope {scope}", scope=scope)


class OtherProject(TumblerError):
    """The request names a project that is not the caller's. Which one is not said back: it could be a pasted key."""

    def __init__(self) -> None:
        super().__init__("the calling key may only act in its own project")


class ScopeEscalation(TumblerError):
    """The caller would hand out a permission on this service that it does not hold."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the calling key cannot grant {scope}: it does not hold that scope itself", scope=scope)


class SelfWidening(TumblerError):
    """A key would make itself stronger; another one has to."""

    def __init__(self, key_id: str) -> None:
        super().__init__("a key cannot widen itself; make this change with another key", key_id=key_id)


class KeyNotFound(TumblerError):
    """No such key, or none that the caller may see: one answer for both."""

    def __init__(self, key_id: str = "") -> None:
        super().__init__("no such key", **({"key_id": key_id} if key_id else {}))


class KeyIsRevoked(TumblerError):
    """A revoked key cannot be changed."""

    def __init__(self, key_id: str) -> None:
        super().__init__("the key is revoked permanently; create a new one", key_id=key_id)


class KeyIsSuperseded(TumblerError):
    """The key was rotated before."""

    def __init__(self, key_id: str, replaced_by_key_id: str) -> None:
        super().__init__(
            "the key has already been rotated; rotate its successor",
            key_id=key_id,
            replaced_by_key_id=replaced_by_key_id,
        )


class KeyIsExpired(TumblerError):
    """An expired key cannot be rotated."""

    def __init__(self, key_id: str) -> None:
        super().__init__("the key has expired; create a new one, or set a later expire_time first", key_id=key_id)


NAMED = 100
"""How many of the keys that a name fits are told, at the most."""


class NameIsAmbiguous(TumblerError):
    """A name fits several keys; ``NAMED`` of them are told."""

    def __init__(self, key_ids: Sequence[str]) -> None:
        super().__init__("the name matches several keys; choose one by its key_id", key_ids=",".join(key_ids[:NAMED]))


class EtagMismatch(TumblerError):
    """The key has changed since the caller read it."""

    def __init__(self, key_id: str) -> None:
        super().__init__("the key has changed since it was read; read it again and retry", key_id=key_id)


class RequestIdReused(TumblerError):
    """A request_id came again with another body."""

    def __init__(self, request_id: str) -> None:
        super().__init__("this request_id was already used with a different request body", request_id=request_id)


class Overloaded(TumblerError):
    """Too much work is waiting, or too much is open. ``retry_after`` is in microseconds."""

    def __init__(self, retry_after: int, why: str = "too much work is queued") -> None:
        super().__init__(f"{why}; retry later")
        self.retry_after = retry_after


class ReaderTooSlow(TumblerError):
    """A stream's reader does not take what it is sent, or not as fast as it comes."""

    def __init__(self) -> None:
        super().__init__("the stream was not read fast enough; read faster, and resume from the last cursor")


class ServerStopping(TumblerError):
    """The server ends, and its streams with it; a call that comes then is not begun."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; reconnect, and resume each stream from its last cursor")


class Cause(enum.Enum):
    """Why the database does not do what it is asked: what a caller is told, and what an operator can do about it."""

    AWAY = ("the database does not answer", "check that it runs and is reachable, and that --database is correct")
    SLOW = ("the database does not answer in time", "find what locks it or keeps it busy")
    FULL = ("the database has no space left", "free space on its disk; no restart is needed")
    READ_ONLY = ("the database is read-only", "check that it is the primary, and that its files are writable")
    CROWDED = (
        "the database is out of connections or memory",
        "raise its max_connections, or lower --workers and --threads",
    )
    STOPPING = ("the database is starting or stopping", "wait; a running server reconnects by itself")
    REFUSED = ("the database refuses this server", "check that it exists, and that this user may open and change it")
    BROKEN = ("the database's disk is failing", "check the disk and the system log")
    DAMAGED = ("the database is damaged", "stop the server, and restore a backup that passes `audit verify`")
    REPLACED = (
        "the database is not the one that was opened",
        "restore a backup only while no server runs; then run `tumbler-server audit verify`, and start the server",
    )

    def __init__(self, told: str, mend: str) -> None:
        self.told = told
        self.mend = mend


class StoreUnavailable(TumblerError):
    """The database does not answer, or refuses. ``said`` is its own reason in one line, for the operator alone.

    ``changed`` says what became of the change that it was asked for: nothing was changed (``no``), nobody knows
    (``unknown``), or it was asked for none (empty).
    """

    _ENDINGS: ClassVar = {
        "": "",
        "no": "; nothing was changed",
        "unknown": "; the change may or may not have been made",
    }

    def __init__(self, cause: Cause = Cause.AWAY, said: str = "", changed: str = "") -> None:
        super().__init__(
            cause.told + self._ENDINGS[changed], cause=cause.name, **({"changed": changed} if changed else {})
        )
        self.cause = cause
        self.said = said


def may_have_changed(failure: BaseException) -> bool:
    """Say whether a change that ended with this may have been made: nobody knows, or it was interrupted."""
    if isinstance(failure, StoreUnavailable):
        return failure.detail.get("changed") != "no"
    return not isinstance(failure, Exception)


class CallerGone(TumblerError):
    """The caller cancelled the call, or its deadline passed, before anything was changed."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled or timed out before it began; nothing was changed")


class LimitReached(TumblerError):
    """A project has as many of something as it may have. ``limit`` names the row of docs/limits.md."""

    def __init__(self, limit: str, most: int) -> None:
        super().__init__(f"the project has reached its limit of {most:,} {limit}", limit=limit, most=str(most))


class RequestTooLarge(TumblerError):
    """A request has more bytes than its method takes, in its message or in its header."""

    def __init__(self, size: int, most: int, part: str = "request") -> None:
        super().__init__(
            f"the {part} is {size:,} bytes long; this method accepts at most {most:,}", bytes=str(size), most=str(most)
        )


class RequestTooSlow(TumblerError):
    """A caller has opened a call and does not send its request."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the request did not arrive within {seconds} seconds after its headers")


class ClaimTokenInvalid(TumblerError):
    """What was shown is no claim token of this installation, or was changed."""

    def __init__(self) -> None:
        super().__init__("this is not a claim token of this installation")


class ClaimOutdated(TumblerError):
    """A claim token was for a rotation that is not due any more."""

    def __init__(self, key_id: str) -> None:
        super().__init__("this claim token is out of date: its rotation is no longer due", key_id=key_id)


class WebhooksNeedPepper(TumblerError):
    """Webhook secrets and claim tokens are kept safe by the pepper, and there is none."""

    def __init__(self) -> None:
        super().__init__("webhooks need a pepper file, and this server has none; ask its operator to create one")


class EndpointNotFound(TumblerError):
    """No key of the project was ever given this URL, or none has had it for so long that its secret is forgotten."""

    def __init__(self) -> None:
        super().__init__("no key of the project has this webhook_url, or had it recently")


class DeliveryNotFound(TumblerError):
    """No such delivery, or none that the caller may see: one answer for both."""

    def __init__(self) -> None:
        super().__init__("no such delivery")


class DeliveryOutdated(TumblerError):
    """What a delivery was to tell is not true any more."""

    def __init__(self, delivery_id: str) -> None:
        super().__init__("this delivery is out of date; it is not sent again", delivery_id=delivery_id)


class SetupError(Exception):
    """The installation is wrong; the message tells the operator what to do. Never sent to callers."""


def explain(failure: SetupError | StoreUnavailable) -> str:
    """Return what an operator is told of a command that cannot go on: what, why, and what to do."""
    if isinstance(failure, SetupError):
        return str(failure)
    why = f": {failure.said}" if failure.said else ""
    return f"{failure.message}{why}. To fix it: {failure.cause.mend}"


class InstallationLost(SetupError):
    """The database under a running server is not the one that was opened any more: the server has to end."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}. To fix it: {Cause.REPLACED.mend}")


class CannotListen(SetupError):
    """An address that the operator chose cannot be had."""

    def __init__(self, address: str) -> None:
        super().__init__(f"cannot listen on {address}: is another server running there?")


def _clipped(text: str, most: int) -> str:
    """Return a text, cut where it has more than so many bytes in UTF-8."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "..."
