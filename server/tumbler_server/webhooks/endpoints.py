"""Endpoints: the URLs that receive a project's webhooks, each with its own secret to sign them."""

import base64
import secrets
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks.webhooks import Webhook

from tumbler_server.clock import DAY, NEVER
from tumbler_server.errors import EndpointNotFound, LimitReached, WebhooksNeedPepper
from tumbler_server.limits import WEBHOOK_SECRETS, WEBHOOK_URLS
from tumbler_server.secrets.vault import CannotOpen, Sealed, Vault
from tumbler_server.store.database import Select, Transaction
from tumbler_server.store.models import EndpointRow
from tumbler_server.webhooks.targets import Judge

OVERLAP = DAY
"""How long a replaced secret goes on signing beside its successor."""

SIZE = 32
"""Bytes of a secret. The Standard Webhooks specification asks for 24 to 64."""


@dataclass(frozen=True)
class NewSecret:
    """A new secret, shown once, and the time until which the previous one signs as well."""

    text: str = field(repr=False)
    previous_expire_time: int


class Endpoints:
    """The endpoints of all projects. A project has at most ``most``. ``judge`` checks a URL before it is set."""

    def __init__(self, vault: Vault, judge: Judge, most: int = WEBHOOK_URLS.most) -> None:
        self._vault = vault
        self._most = most
        self.judge = judge
        self.newest = vault.newest
        """The id of the pepper that seals new secrets; empty if there is none."""

    def demand_pepper(self) -> None:
        """Raise ``WebhooksNeedPepper`` if there is no pepper: secrets could not be kept safe."""
        if not self._vault.newest:
            raise WebhooksNeedPepper

    def demand_room(self, select: Select, project_id: str, url: str) -> None:
        """Raise ``LimitReached`` if the URL is new to the project, and the project has no room for another."""
        if _find(select, project_id, url) is not None:
            return
        of_project = EndpointRow.select(EndpointRow.id).where(EndpointRow.project_id == project_id)
        if select(of_project.order_by(EndpointRow.url).offset(self._most - 1).limit(1)):
            raise LimitReached(WEBHOOK_URLS.what, self._most)

    def open(self, transaction: Transaction, project_id: str, url: str, now: int) -> str:
        """Create or turn on the endpoint of a project and URL. Return the secret of a new one, else an empty string.

        Raises ``LimitReached``.
        """
        found = _find(transaction.select, project_id, url)
        if found is None:
            self.demand_room(transaction.select, project_id, url)
            return self._make(transaction, project_id, url, now)
        _turn_on(transaction, found.id)
        return ""

    def replace_secret(self, transaction: Transaction, project_id: str, url: str, now: int) -> NewSecret:
        """Give an endpoint a new secret. The current one signs beside it for a day.

        Secrets that were replaced in the last day go on signing too, so any of them that the receiver knows still
        verifies. Raises ``EndpointNotFound``, and ``LimitReached`` if too many secrets would sign.
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
        return NewSecret(_text(secret), until)

    def signers(self, endpoint: Any, now: int) -> list[Webhook]:
        """Return the signers of an endpoint's row: its secret and, while they overlap, the previous ones.

        Raises ``CannotOpen``.
        """
        return [Webhook(secret) for secret in self._opened(endpoint, now)]

    def reseal(self, transaction: Transaction, endpoint: Any) -> None:
        """Re-encrypt an endpoint's secret under the newest pepper. Raises ``CannotOpen``."""
        context = _context(endpoint.project_id, endpoint.url)
        secret = self._vault.open(Sealed(bytes(endpoint.secret), endpoint.pepper_id), context)
        sealed = self._vault.seal(secret, context)
        transaction.run(
            EndpointRow.update(secret=sealed.content, pepper_id=sealed.pepper_id).where(
                (EndpointRow.id == endpoint.id) & (EndpointRow.secret == endpoint.secret)
            )
        )

    def _opened(self, endpoint: Any, now: int) -> list[bytes]:
        """Return an endpoint's valid secrets, the newest first. Raises ``CannotOpen``."""
        context = _context(endpoint.project_id, endpoint.url)
        opened = self._vault.open(Sealed(bytes(endpoint.secret), endpoint.pepper_id), context)
        if endpoint.previous_secret is not None and now < endpoint.previous_expire_time:
            opened += self._vault.open(Sealed(bytes(endpoint.previous_secret), endpoint.previous_pepper_id), context)
        return [opened[at : at + SIZE] for at in range(0, len(opened), SIZE)]

    def _kept(self, endpoint: Any, now: int) -> Sealed:
        """Return an endpoint's valid secrets, sealed to be kept beside a new one. Raises ``LimitReached``."""
        try:
            secrets_now = self._opened(endpoint, now)
        except CannotOpen:  # they cannot sign until their pepper is back
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
    """Turn an endpoint on again, if it was off. It has no pending deliveries: they ended when it was turned off."""
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
