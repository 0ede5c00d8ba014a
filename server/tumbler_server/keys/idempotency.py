"""Idempotency keys (AIP-155): the outcome of each request_id.

Ids belong to the calling project and are shared by Create and Rotate. An id is kept for as long as its key.
"""

from dataclasses import dataclass

from tumbler_server.errors import RequestIdReused
from tumbler_server.keys.record import Key
from tumbler_server.secrets.secret import same
from tumbler_server.store.database import Select, Transaction
from tumbler_server.store.models import RequestRow


@dataclass(frozen=True)
class RequestId:
    """A caller's id for a request, in lower case, and the fingerprint of the whole request body. Empty means none."""

    value: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True)
class Seen:
    """The outcome of an earlier request with the same id."""

    key_id: str
    revision: int
    rotated: bool


def find(select: Select, caller: Key, request_id: RequestId) -> Seen | None:
    """Return the outcome of an earlier request with this id, or None.

    Raises ``RequestIdReused`` if the id was used with a different body.
    """
    if not request_id.value:
        return None
    rows = select(
        RequestRow.select().where(
            (RequestRow.project_id == caller.project_id) & (RequestRow.request_id == request_id.value)
        )
    )
    if not rows:
        return None
    if not same(bytes(rows[0].fingerprint), request_id.fingerprint):
        raise RequestIdReused(request_id.value)
    return Seen(key_id=rows[0].key_id, revision=rows[0].revision, rotated=rows[0].rotated)


def remember(
    transaction: Transaction,
    caller: Key,
    request_id: RequestId,
    key_id: str,
    revision: int,
    now: int,
    rotated: bool = False,
) -> None:
    """Store the outcome of a request, in the request's own transaction."""
    if request_id.value:
        transaction.run(
            RequestRow.insert(
                project_id=caller.project_id,
                request_id=request_id.value,
                fingerprint=request_id.fingerprint,
                key_id=key_id,
                revision=revision,
                rotated=rotated,
                create_time=now,
            )
        )
