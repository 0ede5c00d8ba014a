"""Endpoints: the URLs that a project's webhooks go to, each with a secret of its own that signs what is sent there."""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peewee
from standardwebhooks.webhooks import Webhook

from tumbler_server.clock import DAY, NEVER
from tumbler_server.errors import EndpointNotFound, LimitReached, WebhooksNeedPepper
from tumbler_server.limits import WEBHOOK_SECRETS, WEBHOOK_URLS
from tumbler_server.store.database import Transaction
from tumbler_server.store.models import EndpointRow
from tumbler_server.webhooks.targets import Judge
from tumbler_server.webhooks.vault import CannotOpen, Sealed, Vault

OVERLAP = DAY
"""How long a secret signs beside the one that has taken its place."""

SIZE = 32
"""Bytes of a secret; the specification asks for 24 to 64."""

Select = Callable[[peewee.BaseQuery], list[Any]]
"""How a query is read: outside a transaction by the store, inside by the transaction."""


@dataclass(frozen=True)
class Replaced:
    """A new secret, shown once, and until when the one before it signs as well."""

    text: str = field(repr=False)
    previous_expire_time: int


class Endpoints:
    """Makes endpoints, at most so many for a project, and changes their secrets. ``judge`` is for who sets a URL."""

    def __init__(self, vault: Vault, judge: Judge, most: int = WEBHOOK_URLS.most) -> None:
        self._vault = vault
        self._most = most
        self.judge = judge
        self.newest = vault.newest
        """The id of the pepper under which secrets are sealed now; empty: there is none."""

    def demand_pepper(self) -> None:
        """Raise ``WebhooksNeedPepper`` where there is none: secrets could not be kept safe."""
        if not self._vault.newest:
            raise WebhooksNeedPepper

    def demand_room(self, select: Select, project_id: str, url: str) -> None:
        """Raise ``LimitReached`` where the URL is new to the project, and the project has as many as it may."""
        if _find(select, project_id, url) is not None:
            return
        of_project = EndpointRow.select(EndpointRow.id).where(EndpointRow.project_id == project_id)
        if select(of_project.order_by(EndpointRow.url).offset(self._most - 1).limit(1)):
            raise LimitReached(WEBHOOK_URLS.what, self._most)

    def open(self, transaction: Transaction, project_id: str, url: str, now: int) -> str:
        """Have an endpoint for a project and URL, switched on, and return its secret if it was made just now.

        Raises ``LimitReached``.
        """
        found = _find(transaction.select, project_id, url)
        if found is None:
            self.demand_room(transaction.select, project_id, url)
            return self._make(transaction, project_id, url, now)
        _turn_on(transaction, found.id)
        return ""

    def replace_secret(self, transaction: Transaction, project_id: str, url: str, now: int) -> Replaced:
        """Give an endpoint a new secret; for a day, the present one signs beside it.

        So do those that were replaced in the last day: whichever the receiver has learnt of, it has one that counts.
        Raises ``EndpointNotFound``, and ``LimitReached`` where too many would sign.
        """
        self.demand_pepper()
        found = _find(transaction.select, project_id, url)
        if found is None:
            raise EndpointNotFound
        secret, sealed = self._fresh(project_id, url)
        kept = self._kept(found, now)
        until = now + OVERLAP
        transaction.run(
            EndpointRow.update(
                secret=sealed.content,
                pepper_id=sealed.pepper_id,
                previous_secret=kept.content,
                previous_pepper_id=kept.pepper_id,
                previous_expire_time=until,
            ).where(EndpointRow.id == found.id)
        )
        return Replaced(_text(secret), until)

    def signers(self, endpoint: Any, now: int) -> list[Webhook]:
        """Return what signs for an endpoint's row: its secret and, while they overlap, those before.

        Raises ``CannotOpen``.
        """
        return [Webhook(secret) for secret in self._opened(endpoint, now)]

    def reseal(self, transaction: Transaction, endpoint: Any) -> None:
        """Seal an endpoint's secret anew, under the newest pepper. Raises ``CannotOpen``."""
        context = _context(endpoint.project_id, endpoint.url)
        secret = self._vault.open(Sealed(bytes(endpoint.secret), endpoint.pepper_id), context)
        sealed = self._vault.seal(secret, context)
        transaction.run(
            EndpointRow.update(secret=sealed.content, pepper_id=sealed.pepper_id).where(
                (EndpointRow.id == endpoint.id) & (EndpointRow.secret == endpoint.secret)
            )
        )

    def _opened(self, endpoint: Any, now: int) -> list[bytes]:
        """Return an endpoint's secrets that count, the newest first. Raises ``CannotOpen``."""
        context = _context(endpoint.project_id, endpoint.url)
        opened = self._vault.open(Sealed(bytes(endpoint.secret), endpoint.pepper_id), context)
        if endpoint.previous_secret is not None and now < endpoint.previous_expire_time:
            opened += self._vault.open(Sealed(bytes(endpoint.previous_secret), endpoint.previous_pepper_id), context)
        return [opened[at : at + SIZE] for at in range(0, len(opened), SIZE)]

    def _kept(self, endpoint: Any, now: int) -> Sealed:
        """Return what signs for an endpoint, as it is kept beside a new secret. Raises ``LimitReached``."""
        try:
            secrets_now = self._opened(endpoint, now)
        except CannotOpen:  # nothing signs until their pepper is back
            return Sealed(bytes(endpoint.secret), endpoint.pepper_id)
        if len(secrets_now) > WEBHOOK_SECRETS.most:
            raise LimitReached(WEBHOOK_SECRETS.what, WEBHOOK_SECRETS.most)
        return self._vault.seal(b"".join(secrets_now), _context(endpoint.project_id, endpoint.url))

    def _make(self, transaction: Transaction, project_id: str, url: str, now: int) -> str:
        secret, sealed = self._fresh(project_id, url)
        transaction.run(
            EndpointRow.insert(
                id=secrets.token_hex(8),
                project_id=project_id,
                url=url,
                create_time=now,
                secret=sealed.content,
                pepper_id=sealed.pepper_id,
            )
        )
        return _text(secret)

    def _fresh(self, project_id: str, url: str) -> tuple[bytes, Sealed]:
        secret = secrets.token_bytes(SIZE)
        return secret, self._vault.seal(secret, _context(project_id, url))


def _turn_on(transaction: Transaction, endpoint_id: str) -> None:
    """Let an endpoint be sent to again, if it was turned off. Nothing waits for it: that ended when it was."""
    transaction.run(
        EndpointRow.update(off_time=NEVER, failures=0).where(
            (EndpointRow.id == endpoint_id) & (EndpointRow.off_time != NEVER)
        )
    )
    transaction.run(
        EndpointRow.update(unused_time=NEVER).where(
            (EndpointRow.id == endpoint_id) & (EndpointRow.unused_time != NEVER)
        )
    )


def _find(select: Select, project_id: str, url: str) -> Any:
    rows = select(EndpointRow.select().where((EndpointRow.project_id == project_id) & (EndpointRow.url == url)))
    return rows[0] if rows else None


def _context(project_id: str, url: str) -> str:
    return f"{project_id}\n{url}"


def _text(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()
