"""Calls that are safe to repeat (AIP-155): which request_id was used for what.

Ids belong to the calling project, are shared by Create and Rotate, and are remembered for as long as the key is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peewee

from tumbler_server.errors import RequestIdReused
from tumbler_server.keys.record import Key
from tumbler_server.keys.secret import same
from tumbler_server.store.database import Transaction
from tumbler_server.store.models import RequestRow

Select = Callable[[peewee.BaseQuery], list[Any]]
"""How a query is read: outside a transaction by the store, inside by the transaction."""


@dataclass(frozen=True)
class RequestId:
    """A caller's id for a request, in lower case, and the fingerprint of the request's whole body; empty: none."""

    value: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True)
class Seen:
    """What came of an earlier request of this id."""

    key_id: str
    revision: int
    rotated: bool


def find(select: Select, caller: Key, request_id: RequestId) -> Seen | None:
    """Return what came of the request, if it was made before.

    Raises ``RequestIdReused`` where the id was used with another body.
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
    """Note what came of a request, in its own transaction."""
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
