"""An installation's beginning: pepper file, first key and the file that it goes into come together or not at all."""

from collections.abc import Callable
from pathlib import Path

import peewee
import pytest

from tests.harness import CHEAP
from tumbler_server import founding
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError
from tumbler_server.handover import Handover
from tumbler_server.keys import pepper
from tumbler_server.store import migrations
from tumbler_server.store.database import Store, open_store
from tumbler_server.store.postgresql import Postgresql
from tumbler_server.store.sqlite import Sqlite


def found(installation: Installation, output: Path) -> str:
    """Found an installation as ``init --output`` does."""
    with Handover(output) as handover:
        return founding.found(installation, CHEAP, "tmb", handover.keep)


def fail_at(moment: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the transaction that makes a key fail, before its commit or at it; migrations are let through."""
    write = Store.write

    def failing(store: Store, work: Callable[..., object], urgent: bool = False) -> object:
        if moment == "before":

            def then_fail(transaction: object) -> object:
                work(transaction)
                raise failure

            return write(store, then_fail, urgent)
        for backend in (Sqlite, Postgresql):
            monkeypatch.setattr(backend, "commit", lambda _: (_ for _ in ()).throw(failure))
        return write(store, work, urgent)

    monkeypatch.setattr(Store, "write", failing)


@pytest.mark.parametrize(
    ("moment", "failure", "stays"),
    [
        ("before", SetupError("refused"), False),
        ("at", peewee.OperationalError("the connection is gone"), True),
    ],
)
def test_pepper_and_key_stay_together(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, failure: Exception, stays: bool
) -> None:
    """Where founding fails, the new pepper file goes; where it may have succeeded, pepper and key both stay."""
    installation = Installation(tmp_path / "data", database_url)
    with monkeypatch.context() as patch:
        fail_at(moment, failure, patch)
        with pytest.raises(SetupError):
            found(installation, tmp_path / "key")
    assert (installation.pepper_file.exists(), (tmp_path / "key").exists()) == (stays, stays)
    store = open_store(database_url)
    assert store.read("SELECT COUNT(*) FROM api_key") == [(0,)]
    store.close()
    (tmp_path / "key").unlink(missing_ok=True)
    assert found(installation, tmp_path / "key") == (tmp_path / "key").read_text().strip()


def test_a_pepper_file_that_was_there_stays(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pepper file that I had put there before is used, and not removed by an init that fails."""
    one, other = (
        Installation(tmp_path / "one"),
        Installation(tmp_path / "data", database_url, tmp_path / "one" / "pepper"),
    )
    founding.found(one, CHEAP, "tmb")
    before = one.pepper_file.read_bytes()
    with monkeypatch.context() as patch:
        fail_at("before", SetupError("refused"), patch)
        with pytest.raises(SetupError):
            founding.found(other, CHEAP, "tmb")
    assert one.pepper_file.read_bytes() == before


@pytest.mark.parametrize("shared", [False, True])
def test_who_comes_second_makes_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Who finds no key, and then another founds, is refused: without a key, and without a pepper file of its own.

    Where both have one folder, the pepper file in it stays the one that signed the key.
    """
    first = Installation(tmp_path / "first", database_url)
    second = first if shared else Installation(tmp_path / "second", database_url)
    migrate = migrations.migrate

    def then_found(store: Store) -> list[int]:
        monkeypatch.setattr(migrations, "migrate", migrate)
        found(first, tmp_path / "key")
        return migrate(store)

    monkeypatch.setattr(migrations, "migrate", then_found)
    with pytest.raises(SetupError, match="operator-key --output FILE"):
        found(second, tmp_path / "second-key")
    assert (second.pepper_file.exists(), (tmp_path / "second-key").exists()) == (shared, False)
    store = open_store(database_url)
    ((signed_by,),) = store.read("SELECT pepper_id FROM api_key")
    store.close()
    assert [each.id for each in pepper.load(first.pepper_file)] == [signed_by]


def test_anothers_pepper_makes_no_operators_key(database_url: str, tmp_path: Path) -> None:
    """Who has the database and some other pepper gets no key; who has this database's gets one."""
    installation = Installation(tmp_path / "data", database_url)
    founding.found(installation, CHEAP, "tmb")
    pepper.create(tmp_path / "other")
    other = Installation(tmp_path / "data", database_url, tmp_path / "other")
    with pytest.raises(SetupError, match="is not this database's"):
        founding.make_operator_key(other, CHEAP, "tmb", "operator", revoke_others=False, keep=lambda _: None)
    made = founding.make_operator_key(installation, CHEAP, "tmb", "operator", revoke_others=True, keep=lambda _: None)
    assert len(made.revoked) == 1
