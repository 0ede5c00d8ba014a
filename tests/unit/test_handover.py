"""What becomes of the file of ``--output`` when a command of the server fails."""

from collections.abc import Callable
from pathlib import Path

import peewee
import pytest

from tests.harness import CHEAP
from tumbler.secret_file import SecretFile
from tumbler_server import founding
from tumbler_server.config import Installation
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.handover import Handover
from tumbler_server.store.database import Store, open_store
from tumbler_server.store.postgresql import Postgresql
from tumbler_server.store.sqlite import Sqlite

TEXT = "the text of a key"


def fail(output: Path | None, failure: BaseException, keep: bool = True) -> None:
    """Run a command that fails, before its key is about to be made, or after."""
    with Handover(output) as handover:
        assert output is None or output.exists()
        if keep:
            handover.keep(TEXT)
        raise failure


@pytest.mark.parametrize("failure", [SetupError("refused"), StoreUnavailable(), KeyboardInterrupt(), ValueError()])
def test_a_failure_before_the_key_leaves_no_file(tmp_path: Path, failure: BaseException) -> None:
    """Whatever fails before a key is about to be made: the file goes, and the failure is told as it is."""
    with pytest.raises(type(failure)):
        fail(tmp_path / "key", failure, keep=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [SetupError("refused"), ValueError()])
def test_a_change_that_was_not_made_leaves_no_file(tmp_path: Path, failure: Exception) -> None:
    """A key that was written down and then certainly not made goes with its file."""
    with pytest.raises(type(failure)):
        fail(tmp_path / "key", failure)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [StoreUnavailable(), KeyboardInterrupt()])
def test_a_change_that_may_have_been_made_keeps_the_file(tmp_path: Path, failure: BaseException) -> None:
    """Where it is not known whether the key was made, the file stays, and it is said so."""
    with pytest.raises(SetupError, match=f"If it was, it is the one in {tmp_path}/key"):
        fail(tmp_path / "key", failure)
    assert (tmp_path / "key").read_text() == f"{TEXT}\n"


def test_a_change_that_may_have_been_made_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file it is said that the key was not shown, and how to get another."""
    with pytest.raises(SetupError, match=r"It was not shown\..*operator-key --output FILE"):
        fail(None, StoreUnavailable())
    assert capsys.readouterr().out == ""


def test_a_file_that_another_has_put_there_stays(tmp_path: Path) -> None:
    """If somebody has replaced the file meanwhile, theirs is not removed."""
    with SecretFile(tmp_path / "key"):
        (tmp_path / "other").write_text("theirs")
        (tmp_path / "other").replace(tmp_path / "key")
    assert (tmp_path / "key").read_text() == "theirs"


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
