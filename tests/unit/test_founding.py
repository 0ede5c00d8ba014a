"""An installation's beginning: pepper file, first key and the file that it goes into come together or not at all."""

from collections.abc import Callable
from pathlib import Path

import peewee
import pytest

from tests.harness import CHEAP
from tumbler_server import founding
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.handover import Handover
from tumbler_server.keys import pepper
from tumbler_server.keys.ledger import Ledger
from tumbler_server.store import migrations
from tumbler_server.store.database import Store, open_store
from tumbler_server.store.postgresql import Postgresql
from tumbler_server.store.sqlite import Sqlite


def found(installation: Installation, output: Path) -> str:
    """Found an installation as ``init --output`` does."""
    with Handover(output) as handover:
        return founding.found(installation, CHEAP, "tmb", handover.keep)


def fail_at(moment: str, failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the transaction that makes a key fail: before its commit, at it, or after it.

    With ``away`` it fails at it, and all that come later fail, too. The one before it, which looks, is let through.
    """
    write, commits = Store.write, {Sqlite: Sqlite.commit, Postgresql: Postgresql.commit}
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

    monkeypatch.setattr(Store, "write", failing)


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
    """Where founding fails, the new pepper file goes unless a key may be signed with it; so does the key's own file."""
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


MOMENTS = {"before it has looked": (migrations, "migrate"), "while it makes its key": (Ledger, "make")}


def meanwhile(moment: str, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something done at one moment of the next founding."""
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
    """Who finds no key, and then another founds, is refused: without a key, and without a pepper file of its own.

    Where both have one folder, the pepper file in it stays the one that signed the key.
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
    """If somebody makes or replaces the pepper file meanwhile, founding is refused, and their file stays."""
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
    """Who has the database and some other pepper gets no key; who has this database's gets one."""
    installation = Installation(tmp_path / "data", database_url)
    founding.found(installation, CHEAP, "tmb")
    pepper.create(tmp_path / "other")
    other = Installation(tmp_path / "data", database_url, tmp_path / "other")
    with pytest.raises(SetupError, match="does not belong to this database"):
        founding.make_operator_key(other, CHEAP, "tmb", "operator", revoke_others=False, keep=lambda _: None)
    made = founding.make_operator_key(installation, CHEAP, "tmb", "operator", revoke_others=True, keep=lambda _: None)
    assert len(made.revoked) == 1
