"""Founding an installation: pepper file, first key and its output file are all created, or none."""

from collections.abc import Callable
from pathlib import Path

import peewee
import pytest

from tests.harness import CHEAP
from tumbler_server import founding
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.handover import Handover
from tumbler_server.keys.ledger import Ledger
from tumbler_server.secrets import pepper
from tumbler_server.store import migrations
from tumbler_server.store.database import Store, open_store
from tumbler_server.store.postgresql import Postgresql
from tumbler_server.store.sqlite import Sqlite


def found(installation: Installation, output: Path) -> str:
    """Found an installation, as ``init --output`` does."""
    with Handover(output) as handover:
        return founding.found(installation, CHEAP, "tmb", handover.keep)


def fail_at(moment: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the transaction that creates a key fail: before its commit, at it, or after it.

    With ``away`` it fails at its commit, and so do all later ones. The first transaction, which looks for keys, passes.
    """
    write, commits = Store.write_serialized, {Sqlite: Sqlite.commit, Postgresql: Postgresql.commit}
    writes: list[Store] = []

    def fail(*_: object) -> None:
        raise failure

    def failing(store: Store, work: Callable[..., object], urgent: bool = False) -> object:
        writes.append(store)
        if len(writes) > 2 and moment == "away":
            raise StoreUnavailable
        if len(writes) != 2:
            return write(store, work, urgent)
        if moment == "before":
            return write(store, lambda transaction: (work(transaction), fail()), urgent)
        with monkeypatch.context() as patch:
            for backend, commit in commits.items():
                after = commit if moment == "after" else bool
                patch.setattr(backend, "commit", lambda self, after=after: fail(after(self)))
            return write(store, work, urgent)

    monkeypatch.setattr(Store, "write_serialized", failing)


LOST = peewee.OperationalError("the connection is gone")


@pytest.mark.parametrize(
    ("moment", "failure", "pepper_stays", "key_stays"),
    [
        ("before", SetupError("refused"), False, False),
        ("before", KeyboardInterrupt(), False, True),
        ("at", LOST, False, True),
        ("away", LOST, True, True),
        ("after", LOST, True, True),
    ],
)
def test_pepper_and_key_stay_together(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    failure: BaseException,
    pepper_stays: bool,
    key_stays: bool,
) -> None:
    """If founding fails, the new pepper file is removed unless a key may be signed with it; likewise the key's file."""
    installation = Installation(tmp_path / "data", database_url)
    with monkeypatch.context() as patch:
        fail_at(moment, failure, patch)
        with pytest.raises(SetupError):
            found(installation, tmp_path / "key")
    assert (installation.pepper_file.exists(), (tmp_path / "key").exists()) == (pepper_stays, key_stays)
    store = open_store(database_url)
    signed_by = store.read("SELECT pepper_id FROM api_key")
    store.close()
    if moment == "after":
        assert signed_by == [(pepper.load(installation.pepper_file)[0].id,)]
        return
    assert signed_by == []
    (tmp_path / "key").unlink(missing_ok=True)
    assert found(installation, tmp_path / "key") == (tmp_path / "key").read_text().strip()


def test_a_pepper_file_that_was_there_stays(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing pepper file is used, and not removed if init fails."""
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


MOMENTS = {"before it has looked": (migrations, "migrate"), "while it makes its key": (Ledger, "make")}


def meanwhile(moment: str, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do some work at one moment of the next founding."""
    place, name = MOMENTS[moment]
    original = getattr(place, name)

    def interposed(*arguments: object) -> object:
        monkeypatch.setattr(place, name, original)
        work()
        return original(*arguments)

    monkeypatch.setattr(place, name, interposed)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_who_comes_second_makes_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, shared: bool
) -> None:
    """If another process founds the installation first, founding is refused, without a key or a pepper file of its own.

    If both use one folder, its pepper file stays the one that signed the key.
    """
    first = Installation(tmp_path / "first", database_url)
    second = first if shared else Installation(tmp_path / "second", database_url)
    meanwhile(moment, lambda: found(first, tmp_path / "key"), monkeypatch)
    with pytest.raises(SetupError, match="operator-key --output FILE"):
        found(second, tmp_path / "second-key")
    assert (second.pepper_file.exists(), (tmp_path / "second-key").exists()) == (shared, False)
    store = open_store(database_url)
    ((signed_by,),) = store.read("SELECT pepper_id FROM api_key")
    store.close()
    assert [each.id for each in pepper.load(first.pepper_file)] == [signed_by]


@pytest.mark.parametrize("there", [False, True])
def test_a_pepper_file_that_changes_meanwhile(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """If the pepper file is created or replaced meanwhile, founding is refused, and that file stays."""
    installation = Installation(tmp_path / "data", database_url)
    path = installation.pepper_file
    path.parent.mkdir()
    if there:
        pepper.create(path)

    def replace() -> None:
        path.unlink(missing_ok=True)
        pepper.create(path)

    meanwhile("while it makes its key", replace, monkeypatch)
    with pytest.raises(SetupError, match="pepper file"):
        found(installation, tmp_path / "key")
    assert path.exists()
    found(installation, tmp_path / "key")


def test_anothers_pepper_makes_no_operators_key(database_url: str, tmp_path: Path) -> None:
    """Another database's pepper is refused; this database's own makes an operator's key."""
    installation = Installation(tmp_path / "data", database_url)
    founding.found(installation, CHEAP, "tmb")
    pepper.create(tmp_path / "other")
    other = Installation(tmp_path / "data", database_url, tmp_path / "other")
    with pytest.raises(SetupError, match="does not belong to this database"):
        founding.make_operator_key(other, CHEAP, "tmb", "operator", revoke_others=False, keep=lambda _: None)
    made = founding.make_operator_key(installation, CHEAP, "tmb", "operator", revoke_others=True, keep=lambda _: None)
    assert len(made.revoked) == 1
