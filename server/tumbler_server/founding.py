"""Makes an operator's key without a caller: the first, with the schema and the pepper file, or another if that is lost.

There is no other way to make these keys. Both require what only an operator has: the database, and the second also
the pepper.
"""

import contextlib
from collections.abc import Callable, Sequence

from tumbler_server.clock import MINUTE, system_clock
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.keys import operators
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.operators import Seated
from tumbler_server.scheduler import timekeeping
from tumbler_server.secrets import pepper
from tumbler_server.secrets.pepper import Pepper
from tumbler_server.secrets.secret import Hasher
from tumbler_server.store import migrations
from tumbler_server.store.database import POSTGRESQL, Store, Transaction, open_store

_UNLIMITED = 2**62  # a full project does not lock its operator out

Keep = Callable[[str], None]
"""Receives a key's text before the key is in the database."""


def found(installation: Installation, bcrypt_cost: int, prefix: str, keep: Keep = lambda _: None) -> str:
    """Create an installation, and return its first key, which may do everything.

    The pepper file is created while the write lock is held, after a check that there is no key. If several processes do
    this at the same time, on any machines, one creates a file and the key that its pepper signs. The others create
    nothing.

    Raises ``SetupError`` if the database already has an installation; nothing is changed then.
    """
    if not installation.database:
        installation.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(open_store(installation.database_url, create=True)) as store:
        if migrations.current(store):
            _demand_no_keys(store, installation)
        migrations.migrate(store)
        file = _PepperFile(installation)

        def look(transaction: Transaction) -> None:
            _demand_no_keys(transaction, installation)
            file.look()

        def make(transaction: Transaction) -> None:
            _demand_no_keys(transaction, installation)
            file.make()

        store.write_serialized(look)
        try:
            return _issue(
                store, bcrypt_cost, prefix, file.peppers, "first operator", "tumbler-server init", keep, make
            ).text
        except BaseException:
            file.remove_unused(store)
            raise


def make_operator_key(
    installation: Installation, bcrypt_cost: int, prefix: str, name: str, revoke_others: bool, keep: Keep
) -> Seated:
    """Create another key that may do everything, and revoke the others if requested. Servers may be running.

    Raises ``SetupError`` if there is no installation, the schema is not this program's, or the pepper file is missing
    or another installation's. Raises ``InvalidFields`` if the name breaks the rule. Nothing is changed then.
    """
    with contextlib.closing(open_store(installation.database_url, timeout=MINUTE)) as store:
        migrations.check(store)
        if not _has_keys(store):
            raise SetupError("the database has no installation yet: run `tumbler-server init`")
        peppers = peppers_of(installation, store)
        store.notifies = store.dialect == POSTGRESQL
        timekeeping.begin(store, system_clock(), enough=1)
        return _issue(
            store,
            bcrypt_cost,
            prefix,
            peppers,
            name,
            "tumbler-server operator-key",
            keep,
            lambda _: None,
            revoke_others,
        )


class _PepperFile:
    """The pepper file of an installation that is being created. Use it while the database's write lock is held.

    So if several processes create an installation in one database, only one at a time checks, creates or removes the
    file.
    """

    def __init__(self, installation: Installation) -> None:
        self._path = installation.pepper_file
        self._new: Pepper | None = None
        self._made = False
        self.peppers: tuple[Pepper, ...] = ()
        """The peppers that sign the first key, after ``look``."""

    def look(self) -> None:
        """Load the peppers of the file, or generate one if there is no file. Raises ``SetupError``."""
        self._new = None if self._path.exists() else pepper.generate()
        self.peppers = pepper.load(self._path) if self._new is None else (self._new,)

    def make(self) -> None:
        """Create the file, once, unless it existed. Raises ``SetupError`` if it has changed, or cannot be created."""
        if self._new is not None and not self._made:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            pepper.create(self._path, self._new)
            self._made = True
        elif pepper.load(self._path) != self.peppers:
            raise SetupError(f"the pepper file {self._path} changed during init: run `tumbler-server init` again")

    def remove_unused(self, store: Store) -> None:
        """Remove the file if it was created here and signed no key. If the database does not answer, the file stays."""

        def work(transaction: Transaction) -> None:
            if not _signed(transaction, self.peppers):
                self._path.unlink(missing_ok=True)

        if self._made:
            with contextlib.suppress(StoreUnavailable):
                store.write_serialized(work)


def _issue(
    store: Store,
    bcrypt_cost: int,
    prefix: str,
    peppers: Sequence[Pepper],
    name: str,
    command: str,
    keep: Keep,
    demand: Callable[[Transaction], None],
    revoke_others: bool = False,
) -> Seated:
    ledger = Ledger(store, Hasher(bcrypt_cost, peppers), system_clock, lambda *_: None, _UNLIMITED)
    made, hashed = ledger.make(prefix)
    keep(made.text)
    return operators.issue(ledger, made, hashed, name, command, demand, revoke_others)


def _has_keys(database: Store | Transaction) -> bool:
    return bool(database.read("SELECT 1 FROM api_key LIMIT 1"))


def _signed(database: Store | Transaction, peppers: Sequence[Pepper]) -> bool:
    """Return whether any key was signed with one of these peppers."""
    slots = ", ".join("?" * len(peppers))
    signed = f"SELECT 1 FROM api_key WHERE pepper_id IN ({slots}) LIMIT 1"  # noqa: S608 - no input in it
    return bool(database.read(signed, [each.id for each in peppers]))


def _demand_no_keys(database: Store | Transaction, installation: Installation) -> None:
    if _has_keys(database):
        raise _exists(installation)


def peppers_of(installation: Installation, store: Store) -> Sequence[Pepper]:
    """Return the peppers, if one of them signed keys of this database. Raises ``SetupError``."""
    needed = "operator-key needs the database and the pepper file that the servers use"
    try:
        peppers = pepper.load(installation.pepper_file)
    except SetupError as failure:
        raise SetupError(f"{failure}. {needed}: use --pepper-file or --data-dir. Nothing was changed") from None
    if not _signed(store, peppers):
        raise SetupError(
            f"the pepper file {installation.pepper_file} does not belong to this database: it signed none of its keys. "
            f"{needed}. Nothing was changed"
        )
    return peppers


def _exists(installation: Installation) -> SetupError:
    where = f"in {installation.data_dir}" if not installation.database else "in this database"
    return SetupError(
        f"there is already an installation {where}; its first key was shown when it was made. "
        "If that key is lost, `tumbler-server operator-key --output FILE` makes another"
    )
