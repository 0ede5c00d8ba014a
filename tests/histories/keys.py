"""Bulk creation of keys by the server's own code, some hundreds in a transaction, before any server runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from tests.domain import OPERATOR
from tests.harness import CHEAP
from tumbler_server.clock import HOUR, system_clock
from tumbler_server.config import Installation
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.lifecycle import Draft, Lifecycle
from tumbler_server.secrets.secret import Hasher
from tumbler_server.secrets.vault import Vault
from tumbler_server.store.database import Store, Transaction, open_store
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.targets import Judge, Resolver, TargetRules

T = TypeVar("T")

PROJECT = "histories"
"""The project of the keys."""

_AT_ONCE = 500


@dataclass(frozen=True)
class Made:
    """A key: its id and its text."""

    id: str
    text: str = field(repr=False)


def make(installation: Installation, count: int, cost: int = CHEAP) -> list[Made]:
    """Create keys in an installation that no server uses, and return them."""
    hasher = Hasher(cost, installation.peppers())
    store = open_store(installation.database_url)
    try:
        made: list[Made] = []
        while len(made) < count:
            number = min(_AT_ONCE, count - len(made))
            made += store.write_serialized(lambda transaction, number=number: _make(hasher, transaction, number))
        return made
    finally:
        store.close()


class _Open:
    """A stand-in for the store during a transaction: each write becomes a part of the transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self.select: Callable[[Any], list[Any]] = transaction.select
        self.read = transaction.read
        self._transaction = transaction

    def write_serialized(self, work: Callable[[Transaction], T], urgent: bool = False) -> T:  # noqa: ARG002 - the store's
        return work(self._transaction)


def _make(hasher: Hasher, transaction: Transaction, count: int) -> list[Made]:
    ledger = Ledger(cast("Store", _Open(transaction)), hasher, system_clock, lambda *_: None)
    lifecycle = Lifecycle(ledger, "tmb", HOUR, Endpoints(Vault({}), Judge(TargetRules(), Resolver())))
    issued = [lifecycle.create(OPERATOR, Draft(project_id=PROJECT)) for _ in range(count)]
    return [Made(each.key.id, each.text) for each in issued]
