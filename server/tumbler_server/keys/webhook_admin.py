"""Webhook deliveries for callers: listing, redelivery and new endpoint secrets."""

import json
from dataclasses import dataclass
from typing import Any

from tumbler.decide import RESERVED
from tumbler_server.clock import NEVER, Clock, rfc3339
from tumbler_server.errors import DeliveryNotFound, DeliveryOutdated, EndpointNotFound, LimitReached
from tumbler_server.events import log
from tumbler_server.events.log import Actor, Change, EventType
from tumbler_server.keys import access
from tumbler_server.keys.paging import cut
from tumbler_server.keys.record import Key
from tumbler_server.keys.rules import Validation
from tumbler_server.limits import LENGTHS, WEBHOOKS_PENDING
from tumbler_server.secrets.opaque_tokens import OpaqueTokens, fingerprint
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.models import ApiKeyRow, DeliveryRow, EndpointRow
from tumbler_server.webhooks import deliveries, messages
from tumbler_server.webhooks.deliveries import DeliveryState
from tumbler_server.webhooks.endpoints import Endpoints, NewSecret
from tumbler_server.webhooks.outbox import GIVE_UP_AFTER

_LONGEST_ID = 64

_MOST_CARRIED = 10_000
"""Most scopes of a URL's keys to check. If there are more, the caller must hold every permission on this service."""

_CARRIED = (
    "SELECT DISTINCT s.scope FROM api_key_scope s JOIN api_key k ON k.id = s.key_id "  # noqa: S608 - no input in it
    f"WHERE s.scope LIKE ? AND s.project_id = ? AND k.webhook_url = ? AND k.revoke_time = {NEVER} "
    "LIMIT ?"
)
_USED = f"SELECT 1 FROM api_key WHERE project_id = ? AND webhook_url = ? AND revoke_time = {NEVER} LIMIT 1"  # noqa: S608
_ENDPOINT = "SELECT 1 FROM webhook_endpoint WHERE project_id = ? AND url = ?"
_CARRIED_SINCE = (
    "SELECT DISTINCT k.scopes FROM event e JOIN api_key k ON k.id = e.key_id "  # noqa: S608 - no input in it
    f"WHERE e.revision > ? AND k.project_id = ? AND k.webhook_url = ? AND k.revoke_time = {NEVER}"
)
"""The permissions on this service of the keys with a URL: of all such keys, and of those changed after a revision."""


@dataclass(frozen=True)
class DeliveryQuery:
    """Which deliveries to list; ListDeliveriesRequest documents each field."""

    project_id: str = ""
    key_id: str = ""
    states: tuple[int, ...] = ()
    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True)
class DeliveryPage:
    """One page of rows, newest event first. It is shorter than requested if a response has no room for more."""

    deliveries: tuple[Any, ...]
    next_page_token: str


class WebhookAdmin:
    """Lists deliveries, redelivers them and replaces endpoint secrets."""

    def __init__(
        self,
        store: Store,
        tokens: OpaqueTokens,
        endpoints: Endpoints,
        clock: Clock,
        most_pending: int = WEBHOOKS_PENDING.most,
    ) -> None:
        self._store = store
        self._tokens = tokens
        self._endpoints = endpoints
        self._clock = clock
        self._most_pending = most_pending

    def page(self, caller: Key, query: DeliveryQuery) -> DeliveryPage:
        """Return the requested page of the deliveries that the caller may see.

        Raises ``InvalidFields``, and ``OtherProject`` if the query names a project other than the caller's.
        """
        size = _check(query)
        project_id = access.scope_of(caller, query.project_id)
        states = tuple(sorted(set(query.states)))
        filtered = fingerprint(["deliveries", project_id, query.key_id, states])
        conditions = [
            condition
            for given, condition in (
                (project_id, DeliveryRow.project_id == project_id),
                (query.key_id, DeliveryRow.key_id == query.key_id),
                (states, DeliveryRow.state.in_(states)),
            )
            if given
        ]
        if query.page_token:
            conditions.append(DeliveryRow.revision < self._tokens.read_page(query.page_token, filtered)[0])
        rows = DeliveryRow.select()
        if conditions:
            rows = rows.where(*conditions)
        found = self._store.select(rows.order_by(DeliveryRow.revision.desc()).limit(size + 1))
        shown, more = cut(found, size, _weight)
        return DeliveryPage(shown, self._tokens.page(filtered, shown[-1].revision, "") if more else "")

    def redeliver(self, caller: Key, delivery_id: str) -> Any:
        """Queue a delivery to be sent again at once, and return its row.

        Raises ``InvalidFields``, ``DeliveryNotFound``, ``DeliveryOutdated``, ``EndpointNotFound``, ``LimitReached``.
        """
        check = Validation()
        if not delivery_id:
            check.fail("delivery_id", "is required")
        check.text("delivery_id", delivery_id, _LONGEST_ID)
        check.done()

        def work(transaction: Transaction) -> Any:
            now = self._clock()
            delivery = _load(transaction, caller, delivery_id)
            keys = transaction.select(ApiKeyRow.select().where(ApiKeyRow.id == delivery.key_id))
            if not keys or messages.outdated(delivery, keys[0], now):
                raise DeliveryOutdated(delivery.id)
            if not deliveries.explained(transaction.read, [delivery]):
                raise DeliveryOutdated(delivery.id)
            if not transaction.select(EndpointRow.select(EndpointRow.id).where(EndpointRow.id == delivery.endpoint_id)):
                raise EndpointNotFound
            most = self._most_pending
            if deliveries.pending(transaction.read, delivery.project_id, most) == most:
                raise LimitReached(WEBHOOKS_PENDING.what, most)
            deliveries.send_again(transaction, delivery, now, now + GIVE_UP_AFTER)
            return _load(transaction, caller, delivery_id)

        return self._store.write_serialized(work)

    def replace_secret(self, caller: Key, project_id: str, url: str) -> NewSecret:
        """Give an endpoint a new secret.

        The holder of the secret can forge messages about the keys with this URL. So the caller must hold all of these
        keys' permissions on this service; all of them if no key has the URL now.

        Raises ``InvalidFields``, ``OtherProject``, ``ScopeEscalation``, ``EndpointNotFound``, ``LimitReached``,
        ``WebhooksNeedPepper``.
        """
        check = Validation()
        check.filter("project_id", project_id)
        if not url:
            check.fail("webhook_url", "is required")
        check.text("webhook_url", url, LENGTHS["webhook_url"])
        check.done()
        if project_id:
            access.enter(caller, project_id)
        project_id = project_id or caller.project_id
        now = self._clock()
        # A project may have a million such keys. Check them before the transaction, and in it only later changes.
        position = log.head(self._store).revision
        carried = self._store.read(_CARRIED, (f"{RESERVED}%", project_id, url, _MOST_CARRIED + 1))
        whole = len(carried) <= _MOST_CARRIED
        # Of an endpoint that no key uses now, it is not known whose it was, and will be again.
        used = self._store.read(_USED, (project_id, url)) or not self._store.read(_ENDPOINT, (project_id, url))
        access.hand_out(caller, tuple(scope for (scope,) in carried) if whole and used else (f"{RESERVED}*",))

        def work(transaction: Transaction) -> NewSecret:
            for (scopes,) in transaction.read(_CARRIED_SINCE, (position, project_id, url)):
                access.hand_out(caller, tuple(json.loads(scopes)))
            replaced = self._endpoints.replace_secret(transaction, project_id, url, now)
            detail = {"webhook_url": url, "previous_expire_time": rfc3339(replaced.previous_expire_time)}
            changed = EventType.WEBHOOK_SECRET_ROTATED
            log.append(transaction, Change(changed, "", project_id, "", now, Actor(caller.id, caller.name), detail))
            return replaced

        return self._store.write_serialized(work)


def _check(query: DeliveryQuery) -> int:
    check = Validation()
    check.filter("project_id", query.project_id)
    if query.key_id:
        check.key_id("key_id", query.key_id)
    check.named("states", query.states, DeliveryState)
    size = check.page_size("page_size", query.page_size)
    check.done()
    return size


def _weight(row: Any) -> int:
    """Return the most bytes that a delivery's message takes."""
    texts = (row.id, row.key_id, row.project_id, row.url, row.last_error)
    return 200 + sum(len(text.encode()) for text in texts)


def _load(transaction: Transaction, caller: Key, delivery_id: str) -> Any:
    rows = transaction.select(DeliveryRow.select().where(DeliveryRow.id == delivery_id))
    if not rows or not access.sees(caller, rows[0].project_id):
        raise DeliveryNotFound
    return rows[0]
