"""The beginning of an installation: schema, pepper file, first key. There is no other way to a first key."""

from tumbler_server.clock import HOUR, system_clock
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError
from tumbler_server.keys import access, pepper
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.lifecycle import Draft, Lifecycle
from tumbler_server.keys.record import Key
from tumbler_server.keys.requests import RequestId
from tumbler_server.keys.secret import Hasher
from tumbler_server.store import migrations
from tumbler_server.store.database import open_store
from tumbler_server.webhooks.endpoints import Endpoints
from tumbler_server.webhooks.targets import Judge, Resolver, Rules

ALL_SCOPES = "tumbler:*"

_FOUNDER = Key(id="", project_id=access.OPERATORS, name="tumbler-server init", scopes=(ALL_SCOPES,))

# One for every installation: of two who found it at the same time, one gets the key and the other is refused.
_ONCE = RequestId("00000000-0000-0000-0000-000000000001", b"tumbler-server init")


def found(installation: Installation, bcrypt_cost: int, prefix: str) -> str:
    """Found an installation, and return its first key, which may do everything.

    Raises ``SetupError`` where the database has one already; nothing is changed then.
    """
    if not installation.database:
        installation.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = open_store(installation.database_url, create=True)
    if migrations.current(store) and store.read("SELECT 1 FROM api_key LIMIT 1"):
        raise _exists(installation)
    if not installation.pepper_file.exists():
        installation.pepper_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        pepper.create(installation.pepper_file)
    migrations.migrate(store)
    peppers = pepper.load(installation.pepper_file)
    hasher = Hasher(bcrypt_cost, peppers)
    endpoints = Endpoints(pepper.vault(peppers), Judge(Rules(), Resolver()))  # the first key has none
    ledger = Ledger(store, hasher, system_clock, committed=lambda _: None)  # nobody is serving yet, to be told
    lifecycle = Lifecycle(ledger, prefix, HOUR, endpoints)
    draft = Draft(project_id=access.OPERATORS, name="first operator", scopes=(ALL_SCOPES,), request_id=_ONCE)
    issued = lifecycle.create(_FOUNDER, draft)
    store.close()
    if issued.repeated:
        raise _exists(installation)
    return issued.text


def _exists(installation: Installation) -> SetupError:
    where = f"in {installation.data_dir}" if not installation.database else "in this database"
    return SetupError(f"there is an installation {where} already; its first key was shown when it was made")
