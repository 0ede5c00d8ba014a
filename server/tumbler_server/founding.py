"""An operator's key without a caller: the first, with its schema and pepper file, and another where that is lost.

There is no other way to either. Both ask for what only an operator has: the database, and the second also the pepper.
"""

import contextlib
from collections.abc import Callable, Sequence

from tumbler_server.clock import MINUTE, system_clock
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError, may_have_changed
from tumbler_server.keys import operators, pepper
from tumbler_server.keys.ledger import Ledger
from tumbler_server.keys.operators import Seated
from tumbler_server.keys.pepper import Pepper
from tumbler_server.keys.secret import Hasher
from tumbler_server.store import migrations
from tumbler_server.store.database import POSTGRESQL, Store, Transaction, open_store

_UNLIMITED = 2**62  # a full project does not lock its operator out

Keep = Callable[[str], None]
"""What is given a key's text before the key is in the database."""


def found(installation: Installation, bcrypt_cost: int, prefix: str, keep: Keep = lambda _: None) -> str:
    """Found an installation, and return its first key, which may do everything.

    The pepper file is made with the write lock held, once it is certain that there is no key: of several who found at
    the same time, wherever they are, one makes a file and the key that its pepper signs, and the others make nothing.

    Raises ``SetupError`` where the database has an installation already; nothing is changed then.
    """
    if not installation.database:
        installation.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(open_store(installation.database_url, create=True)) as store:
        if migrations.current(store) and _has_keys(store):
            raise _exists(installation)
        there = installation.pepper_file.exists()
        peppers = pepper.load(installation.pepper_file) if there else (pepper.generate(),)
        migrations.migrate(store)
        file = _Fresh(installation, None if there else peppers[0])

        def demand(transaction: Transaction) -> None:
            if transaction.read("SELECT 1 FROM api_key LIMIT 1"):
                raise _exists(installation)
            file.place()

        try:
            return _issue(
                store, bcrypt_cost, prefix, peppers, "first operator", "tumbler-server init", keep, demand
            ).text
        except BaseException as failure:
            if not may_have_changed(failure):  # else the key may be there, and then it needs the file
                file.remove()
            raise


def make_operator_key(
    installation: Installation, bcrypt_cost: int, prefix: str, name: str, revoke_others: bool, keep: Keep
) -> Seated:
    """Make another key that may do everything, and revoke the others if asked to. Servers may be running.

    Raises ``SetupError`` where there is no installation, or the schema is not this program's, or the pepper file is
    missing or another installation's; and ``InvalidFields`` for a name that breaks the rule. Nothing is changed then.
    """
    with contextlib.closing(open_store(installation.database_url, timeout=MINUTE)) as store:
        migrations.check(store)
        if not _has_keys(store):
            raise SetupError("the database has no installation yet: run `tumbler-server init`")
        peppers = _peppers_of(installation, store)
        store.notifies = store.dialect == POSTGRESQL
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


class _Fresh:
    """The pepper file that an installation gets with its first key; none, where it has one already."""

    def __init__(self, installation: Installation, first: Pepper | None) -> None:
        self._path = installation.pepper_file
        self._first = first
        self._placed = False

    def place(self) -> None:
        """Make the file, once. Raises ``SetupError`` where somebody else has made one by now."""
        if self._first is not None and not self._placed:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            pepper.create(self._path, self._first)
            self._placed = True

    def remove(self) -> None:
        """Remove the file that was made: no key is signed with it."""
        if self._placed:
            self._path.unlink(missing_ok=True)


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
    ledger = Ledger(store, Hasher(bcrypt_cost, peppers), system_clock, lambda _: None, _UNLIMITED)
    made, sealed = ledger.make(prefix)
    keep(made.text)
    return operators.issue(ledger, made, sealed, name, command, demand, revoke_others)


def _has_keys(store: Store) -> bool:
    return bool(store.read("SELECT 1 FROM api_key LIMIT 1"))


def _peppers_of(installation: Installation, store: Store) -> Sequence[Pepper]:
    """Return the peppers, if keys of this database were signed with one of them. Raises ``SetupError``."""
    needed = "operator-key needs the database and the pepper file that its servers use"
    try:
        peppers = pepper.load(installation.pepper_file)
    except SetupError as failure:
        raise SetupError(f"{failure}. {needed}: give --pepper-file or --data-dir. Nothing was changed") from None
    slots = ", ".join("?" * len(peppers))
    signed = f"SELECT 1 FROM api_key WHERE pepper_id IN ({slots}) LIMIT 1"  # noqa: S608 - no input in it
    if not store.read(signed, [each.id for each in peppers]):
        raise SetupError(
            f"the pepper file {installation.pepper_file} is not this database's: none of its keys was signed with it. "
            f"{needed}. Nothing was changed"
        )
    return peppers


def _exists(installation: Installation) -> SetupError:
    where = f"in {installation.data_dir}" if not installation.database else "in this database"
    return SetupError(
        f"there is an installation {where} already; its first key was shown when it was made. "
        "If that is lost, `tumbler-server operator-key --output FILE` makes another"
    )
