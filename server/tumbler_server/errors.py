"""Domain errors. ``rpc.status`` maps each to a gRPC status; this module does not depend on gRPC.

Messages and details are sent to callers and logged. So they never hold a secret, or text of a caller that could hold
one.
"""

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)


@dataclass(frozen=True)
class Violation:
    """One broken rule: the field's path as in the proto (``api_key.scopes[3]``), and the rule."""

    field: str
    rule: str


# gRPC's clients accept 8 KiB of metadata. If there is more, the caller gets RESOURCE_EXHAUSTED instead. An
# InvalidFields stays below 6 KiB: its message is sent percent-encoded, three bytes for one, and again in its details,
# as base64.
_SHOWN_IN_A_MESSAGE = 200
_SHOWN_OF_A_FIELD = 256
_SHOWN_OF_A_RULE = 256
_MOST_SHOWN = 100
_AROUND = 8
_ROOM = 2_000
"""Maximum bytes of all violations. ``_AROUND`` is what protobuf adds to each."""


class TumblerError(Exception):
    """Base of all errors that a caller may get. ``detail`` becomes the metadata of ErrorInfo."""

    def __init__(self, message: str, /, **detail: str) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


class InvalidFields(TumblerError):
    """One or more fields break a rule. ``violations`` has as many of them as an answer has room for.

    If that is not all, the last one names no field and says how many more there are.
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
    """The call has no key, or one that is not accepted. The message does not say which."""

    def __init__(self) -> None:
        super().__init__("send a valid API key of this service as `authorization: Bearer <key>`")


class ScopeMissing(TumblerError):
    """The calling key lacks the scope that the RPC requires."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the calling key lacks the scope {scope}", scope=scope)


class OtherProject(TumblerError):
    """The request names another project than the caller's. The message does not repeat it: it could be a pasted key."""

    def __init__(self) -> None:
        super().__init__("the calling key may only act in its own project")


class ScopeEscalation(TumblerError):
    """The caller cannot grant a permission on this service that it does not hold."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"the calling key cannot grant {scope}: it does not hold that scope itself", scope=scope)


class SelfWidening(TumblerError):
    """A key cannot widen its own permissions; another key can."""

    def __init__(self, key_id: str) -> None:
        super().__init__("a key cannot widen itself; make this change with another key", key_id=key_id)


class KeyNotFound(TumblerError):
    """No such key, or none that the caller may see. The message does not say which."""

    def __init__(self, key_id: str = "") -> None:
        super().__init__("no such key", **({"key_id": key_id} if key_id else {}))


class KeyIsRevoked(TumblerError):
    """A revoked key cannot be changed."""

    def __init__(self, key_id: str) -> None:
        super().__init__("the key is revoked permanently; create a new one", key_id=key_id)


class KeyIsSuperseded(TumblerError):
    """The key has already been rotated."""

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
"""Maximum number of matching keys that the error lists."""


class NameIsAmbiguous(TumblerError):
    """A name matches several keys. The error lists up to ``NAMED`` of them."""

    def __init__(self, key_ids: Sequence[str]) -> None:
        super().__init__("the name matches several keys; choose one by its key_id", key_ids=",".join(key_ids[:NAMED]))


class EtagMismatch(TumblerError):
    """The key has changed since the caller read it."""

    def __init__(self, key_id: str) -> None:
        super().__init__("the key has changed since it was read; read it again and retry", key_id=key_id)


class RequestIdReused(TumblerError):
    """A request_id was used again with a different body."""

    def __init__(self, request_id: str) -> None:
        super().__init__("this request_id was already used with a different request body", request_id=request_id)


class Overloaded(TumblerError):
    """Too much work is queued, or too much is open. ``retry_after`` is in microseconds."""

    def __init__(self, retry_after: int, why: str = "too much work is queued") -> None:
        super().__init__(f"{why}; retry later")
        self.retry_after = retry_after


class ReaderTooSlow(TumblerError):
    """A stream's reader does not read, or not as fast as messages are sent."""

    def __init__(self) -> None:
        super().__init__("the stream was not read fast enough; read faster, and resume from the last cursor")


class ServerStopping(TumblerError):
    """The server is stopping, and its streams end. A call that arrives now is not begun."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; reconnect, and resume each stream from its last cursor")


class Cause(enum.Enum):
    """Why the database fails: what to tell the caller, and how an operator can fix it."""

    AWAY = ("the database does not answer", "check that it runs and is reachable, and that --database is correct")
    SLOW = ("the database does not answer in time", "find what locks it or keeps it busy")
    FULL = ("the database has no space left", "free space on its disk; a running server continues by itself")
    READ_ONLY = ("the database is read-only", "check that it is the primary, and that its files are writable")
    CROWDED = (
        "the database is out of connections or memory",
        "raise its max_connections, or lower --workers and --threads",
    )
    NO_FILES = (
        "the server has no more files to open",
        "raise its limit of open files (`ulimit -n`, LimitNOFILE), or lower --workers and --threads",
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
    """The database does not answer, or refuses. ``said`` is its own reason in one line, for the operator only.

    ``changed`` is the outcome of the requested change: nothing was changed (``no``), not known (``unknown``), or no
    change was requested (empty).
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


def own(failure: E) -> E:
    """Return a copy of a failure that several callers share, for one of them to raise.

    Whoever raises an exception adds to its traceback, and ``rpc.status`` clears that at the end. With one exception for
    all, callers would hold one another's frames, and the log would name no place.
    """
    copy = type(failure).__new__(type(failure), *failure.args)
    copy.__dict__.update(failure.__dict__)
    copy.__cause__ = failure.__cause__
    return copy.with_traceback(failure.__traceback__)


def may_have_changed(failure: BaseException) -> bool:
    """Return whether a change that ended with this failure may have been made.

    That is so if its outcome is unknown, or if it was interrupted.
    """
    if isinstance(failure, StoreUnavailable):
        return failure.detail.get("changed") != "no"
    return not isinstance(failure, Exception)


class CallerGone(TumblerError):
    """The caller cancelled the call, or its deadline passed, before anything was changed."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled or timed out before it began; nothing was changed")


class LimitReached(TumblerError):
    """A project has reached a limit. ``limit`` names the row of docs/limits.md."""

    def __init__(self, limit: str, most: int) -> None:
        super().__init__(f"the project has reached its limit of {most:,} {limit}", limit=limit, most=str(most))


class RequestTooLarge(TumblerError):
    """A request has more bytes than its method accepts, in its message or in its headers."""

    def __init__(self, size: int, most: int, part: str = "request") -> None:
        super().__init__(
            f"the {part} is {size:,} bytes long; this method accepts at most {most:,}", bytes=str(size), most=str(most)
        )


class RequestTooSlow(TumblerError):
    """A caller opened a call, but did not send its request in time."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the request did not arrive within {seconds} seconds after its headers")


class ClaimTokenInvalid(TumblerError):
    """A text is not a claim token of this installation, or was altered."""

    def __init__(self) -> None:
        super().__init__("this is not a claim token of this installation")


class ClaimOutdated(TumblerError):
    """The rotation of a claim token is no longer due."""

    def __init__(self, key_id: str) -> None:
        super().__init__("this claim token is out of date: its rotation is no longer due", key_id=key_id)


class WebhooksNeedPepper(TumblerError):
    """The pepper protects webhook secrets and claim tokens, and there is none."""

    def __init__(self) -> None:
        super().__init__("webhooks need a pepper file, and this server has none; ask its operator to create one")


class EndpointNotFound(TumblerError):
    """No key of the project ever had this URL, or the last one had it so long ago that its secret was deleted."""

    def __init__(self) -> None:
        super().__init__("no key of the project has this webhook_url, or had it recently")


class DeliveryNotFound(TumblerError):
    """No such delivery, or none that the caller may see. The message does not say which."""

    def __init__(self) -> None:
        super().__init__("no such delivery")


class DeliveryOutdated(TumblerError):
    """What a delivery would report is no longer true."""

    def __init__(self, delivery_id: str) -> None:
        super().__init__("this delivery is out of date; it is not sent again", delivery_id=delivery_id)


class SetupError(Exception):
    """The installation is wrong; the message tells the operator what to do. Never sent to callers."""


def explain(failure: SetupError | StoreUnavailable) -> str:
    """Return the message for an operator when a command cannot continue: what failed, why, and what to do."""
    if isinstance(failure, SetupError):
        return str(failure)
    why = f": {failure.said}" if failure.said else ""
    return f"{failure.message}{why}. To fix it: {failure.cause.mend}"


class InstallationLost(SetupError):
    """The database of a running server is no longer the one that was opened: the server must stop."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}. To fix it: {Cause.REPLACED.mend}")


class CannotListen(SetupError):
    """The server cannot listen on the address that the operator chose."""

    def __init__(self, address: str) -> None:
        super().__init__(f"cannot listen on {address}: is another server running there?")


def _clipped(text: str, most: int) -> str:
    """Return a text, cut to at most this many bytes of UTF-8."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= most else encoded[: most - 3].decode(errors="ignore") + "..."
