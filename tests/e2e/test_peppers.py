"""Servers of one installation with different pepper files."""

import pytest

from tests.e2e.service import Service, eventually
from tests.e2e.test_commands import doctor
from tests.e2e.test_workers import logged
from tumbler_server.secrets import pepper

DIFFERENT = "servers of this installation have different peppers: give all the same pepper file, and restart them"
FOREIGN = "keys are signed with peppers that this server does not have: each costs bcrypt when first seen"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_with_another_pepper_file(installed: Service, workers: str) -> None:
    """A server with a different pepper file logs the pepper IDs, and the doctor warns of it."""
    installed.start("--workers", workers)
    own = installed.pepper_file.with_name("another")
    pepper.create(own)
    (ours,), (theirs,) = pepper.load(installed.pepper_file), pepper.load(own)
    assert eventually(lambda: len(installed.read("SELECT * FROM server")) == int(workers))
    other = Service(installed.data_dir.with_name("other"), installed.database_url, operator=installed.key)
    other.start("--pepper-file", str(own))
    try:
        (told,) = eventually(lambda: logged(other, DIFFERENT))
        assert (told["ours"], list(told["theirs"].values())) == ([theirs.id], [[ours.id]] * int(workers))
        (told,) = eventually(lambda: logged(other, FOREIGN))
        assert told["theirs"] == [ours.id]
        code, findings = doctor(installed)
        assert (code, findings["peppers in use"]["severity"]) == (0, "warning")
        assert f"{1} of {int(workers) + 1} serving processes" in findings["peppers in use"]["found"]
        assert theirs.id in findings["peppers in use"]["found"]
        assert other.verdict(installed.key) == "VALID", "it works all the same"
        for text in (other.stderr, str(findings)):
            assert theirs.secret.hex() not in text
    finally:
        other.close()
    assert "serving processes" not in doctor(installed)[1]["peppers in use"]["found"], "the other one has ended"
    assert installed.stop() == 0
    assert installed.read("SELECT * FROM server") == []


def test_keys_under_a_pepper_that_is_gone(embedded: Service) -> None:
    """If the pepper file was replaced, the doctor warns of keys that are signed with a missing pepper."""
    (old,) = pepper.load(embedded.pepper_file)
    assert doctor(embedded)[1]["peppers in use"]["severity"] == "ok"
    embedded.pepper_file.unlink()
    pepper.create(embedded.pepper_file)
    code, findings = doctor(embedded)
    assert (code, findings["peppers in use"]["severity"]) == (0, "warning")
    assert old.id in findings["peppers in use"]["found"]
    embedded.start()
    assert embedded.verdict(embedded.key) == "VALID"
    eventually(lambda: doctor(embedded)[1]["peppers in use"]["severity"] == "ok")
