"""Endpoints: the URLs that a project's webhooks go to, each with a secret of its own that signs what is sent there."""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks.webhooks import Webhook

from tumbler_server.clock import DAY, NEVER
from tumbler_server.errors import EndpointNotFound, WebhooksNeedPepper
from tumbler_server.store.database import Transaction
from tumbler_server.store.models import EndpointRow
from tumbler_server.webhooks.vault import Sealed, Vault

OVERLAP = DAY
"""How long a secret signs beside the one that has taken its place."""

SIZE = 32
"""Bytes of a secret; the specification asks for 24 to 64."""


@dataclass(frozen=True)
class Replaced:
    """A new secret, shown once, and until when the one before it signs as well."""

    text: str = field(repr=False)
    previous_expire_time: int


class Endpoints:
    """Makes endpoints and changes their secrets. ``judge`` says what is wrong with a URL, in words; empty: nothing."""

    def __init__(self, vault: Vault, judge: Callable[[str], str]) -> None:
        self._vault = vault
        self.judge = judge
        self.newest = vault.newest
        """The id of the pepper under which secrets are sealed now; empty: there is none."""

    def demand_pepper(self) -> None:
        """Raise ``WebhooksNeedPepper`` where there is none: secrets could not be kept safe."""
        if not self._vault.newest:
            raise WebhooksNeedPepper

    def open(self, transaction: Transaction, project_id: str, url: str, now: int) -> str:
        """Have an endpoint for a project and URL, switched on, and return its secret if it was made just now."""
        found = _find(transaction, project_id, url)
        if found is None:
            return self._make(transaction, project_id, url, now)
        _turn_on(transaction, found.id)
        return ""

    def replace_secret(self, transaction: Transaction, project_id: str, url: str, now: int) -> Replaced:
        """Give an endpoint a new secret; for a day, the present one signs beside it. Raises ``EndpointNotFound``."""
        self.demand_pepper()
        found = _find(transaction, project_id, url)
        if found is None:
            raise EndpointNotFound
        secret, sealed = self._fresh(project_id, url)
        until = now + OVERLAP
        transaction.run(
            EndpointRow.update(
                secret=sealed.content,
                pepper_id=sealed.pepper_id,
                previous_secret=found.secret,
                previous_pepper_id=found.pepper_id,
                previous_expire_time=until,
            ).where(EndpointRow.id == found.id)
        )
        return Replaced(_text(secret), until)

    def signers(self, endpoint: Any, now: int) -> list[Webhook]:
        """Return what signs for an endpoint's row: its secret and, while they overlap, the one before.

        Raises ``CannotOpen``.
        """
        context = _context(endpoint.project_id, endpoint.url)
        sealed = [Sealed(bytes(endpoint.secret), endpoint.pepper_id)]
        if endpoint.previous_secret is not None and now < endpoint.previous_expire_time:
            sealed.append(Sealed(bytes(endpoint.previous_secret), endpoint.previous_pepper_id))
        return [Webhook(self._vault.open(each, context)) for each in sealed]

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


def _find(transaction: Transaction, project_id: str, url: str) -> Any:
    rows = transaction.select(
        EndpointRow.select().where((EndpointRow.project_id == project_id) & (EndpointRow.url == url))
    )
    return rows[0] if rows else None


def _context(project_id: str, url: str) -> str:
    return f"{project_id}\n{url}"


def _text(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()
