"""The domain without gRPC, for tests of keys, events and the store."""

from collections.abc import Sequence
from typing import Any

from tests.harness import CHEAP, FrozenClock
from tumbler_server.clock import HOUR, MINUTE
from tumbler_server.defaults import MAX_STALENESS
from tumbler_server.errors import StoreUnavailable
from tumbler_server.freshness.tail import Tail
from tumbler_server.keys.ledger import Issued, Ledger
from tumbler_server.keys.lifecycle import Draft, Lifecycle
from tumbler_server.keys.listing import Listing
from tumbler_server.keys.record import Key
from tumbler_server.keys.rotation import Rotation, Rotations
from tumbler_server.secrets.claim_tokens import ClaimTokens
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens
from tumbler_server.secrets.pepper import Pepper, vault
from tumbler_server.secrets.secret import Hasher
from tumbler_server.store import migrations
from tumbler_server.store.database import Store, open_store
from tumbler_server.verify.cache import ProofCache
from tumbler_server.verify.first_use import FirstUses
from tumbler_server.verify.rehasher import Rehasher
from tumbler_server.verify.usage import Usage
from tumbler_server.verify.verifier import Verifier
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.targets import Judge, Refused, Resolver, TargetRules

OPERATOR = Key(id="", project_id="tumbler", name="the tests", scopes=("*", "tumbler:*"))
"""A caller who may do everything."""

PATIENCE = 120.0
"""Seconds that a look-up may take. A test that waits for so long has failed."""

PEPPER = Pepper(bytes(range(32)))


def new_store(database_url: str) -> Store:
    """Open an empty database and create its tables."""
    # Long enough for large transactions and busy machines.
    store = open_store(database_url, create=True, timeout=10 * MINUTE)
    migrations.migrate(store)
    return store


def answers(store: Store) -> bool:
    """Return whether a database answers now."""
    try:
        store.read("SELECT 1")
    except StoreUnavailable:
        return False
    return True


def judge(url: str, rules: TargetRules, resolver: Resolver, timeout: float) -> None:
    """Judge a URL as Create does. Raises ``Refused``."""
    judging = Judge(rules, resolver, timeout)
    if rule := judging.form(url) or judging.look_up(url, "acme"):
        raise Refused(rule)


class Domain:
    """The domain as ``server.build_core`` wires it, on a store that the caller opens and closes."""

    def __init__(
        self, store: Store, clock: FrozenClock, peppers: Sequence[Pepper] = (PEPPER,), max_webhook_urls: int = 1_000
    ) -> None:
        self.store = store
        self.clock = clock
        self.hasher = Hasher(CHEAP, peppers)
        cache = self.cache = ProofCache(1_000)
        self.monotonic = FrozenClock(0)
        self.tail = Tail(store, cache, monotonic=self.monotonic)
        self.claim_tokens = ClaimTokens(peppers)
        self.looked_up: list[str] = []
        """Names that were looked up. None has an address."""
        judge = Judge(TargetRules(), Resolver(self._look_up), PATIENCE, self.monotonic)
        self.endpoints = Endpoints(vault(peppers), judge, max_webhook_urls)
        ledger = Ledger(store, self.hasher, clock, self.tail.committed)
        self.lifecycle = Lifecycle(ledger, "tmb", HOUR, self.endpoints)
        self.rotations = Rotations(ledger, self.claim_tokens)
        self.listing = Listing(store, open_opaque_tokens(store, self.tail.lineage.mark), clock)
        self.rehasher = Rehasher(store, self.hasher, clock)
        self.usage = Usage(store)
        self.first_uses = FirstUses(ledger)
        self.verifier = Verifier(
            store, self.hasher, self.tail, cache, self.rehasher, self.usage, self.first_uses, clock
        )

    def _look_up(self, name: str) -> list[str]:
        self.store.write_serialized(lambda _: None)  # hangs if the caller holds the write lock during its look-up
        self.looked_up.append(name)
        return []

    def create(self, **fields: Any) -> Issued:
        """Create a key, by default in project ``acme``."""
        return self.lifecycle.create(OPERATOR, Draft(**{"project_id": "acme", **fields}))

    def rotate(self, key_id: str, **fields: Any) -> Issued:
        """Rotate a key."""
        return self.rotations.rotate(OPERATOR, Rotation(key_id, **fields))

    def revoke(self, key_id: str) -> None:
        """Revoke a key."""
        self.lifecycle.revoke(OPERATOR, key_id, 0, "")

    def let_lapse(self) -> None:
        """Let enough time pass that an unconfirmed position in the log is stale."""
        self.monotonic.advance(MAX_STALENESS + 1)

    def close(self) -> None:
        """Stop the threads. The store stays open."""
        self.rehasher.close()
