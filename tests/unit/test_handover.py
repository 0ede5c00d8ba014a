"""What happens to the file of ``--output`` if a command of the server fails."""

from pathlib import Path

import pytest

from tumbler.secret_file import SecretFile
from tumbler_server.errors import SetupError, StoreUnavailable
from tumbler_server.handover import Handover

TEXT = "the text of a key"


def fail(output: Path | None, failure: BaseException, keep: bool = True) -> None:
    """Run a command that fails, before or after its key is handed over."""
    with Handover(output) as handover:
        assert output is None or output.exists()
        if keep:
            handover.keep(TEXT)
        raise failure


@pytest.mark.parametrize("failure", [SetupError("refused"), StoreUnavailable(), KeyboardInterrupt(), ValueError()])
def test_a_failure_before_the_key_leaves_no_file(tmp_path: Path, failure: BaseException) -> None:
    """A failure before the key is handed over removes the file, and propagates unchanged."""
    with pytest.raises(type(failure)):
        fail(tmp_path / "key", failure, keep=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [SetupError("refused"), ValueError()])
def test_a_change_that_was_not_made_leaves_no_file(tmp_path: Path, failure: Exception) -> None:
    """A key that was certainly not created is removed with its file."""
    with pytest.raises(type(failure)):
        fail(tmp_path / "key", failure)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [StoreUnavailable(), KeyboardInterrupt()])
def test_a_change_that_may_have_been_made_keeps_the_file(tmp_path: Path, failure: BaseException) -> None:
    """If it is unknown whether the key was created, the file stays, and the message says so."""
    with pytest.raises(SetupError, match=f"If it was, it is in {tmp_path}/key"):
        fail(tmp_path / "key", failure)
    assert (tmp_path / "key").read_text() == f"{TEXT}\n"


def test_a_change_that_may_have_been_made_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file, the message says that the key was not shown, and how to get another."""
    with pytest.raises(SetupError, match=r"It was not shown\..*operator-key --output FILE"):
        fail(None, StoreUnavailable())
    assert capsys.readouterr().out == ""


def test_a_file_that_another_has_put_there_stays(tmp_path: Path) -> None:
    """A file that someone else has put in its place is not removed."""
    with SecretFile(tmp_path / "key"):
        (tmp_path / "other").write_text("theirs")
        (tmp_path / "other").replace(tmp_path / "key")
    assert (tmp_path / "key").read_text() == "theirs"
