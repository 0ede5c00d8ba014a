"""The pepper file."""

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tumbler_server.errors import SetupError
from tumbler_server.secrets import pepper
from tumbler_server.secrets.pepper import Pepper


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a pepper file that does not exist yet."""
    return tmp_path / "pepper"


def write(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    """Write a pepper file as an operator might."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


def line(number: int, size: int = pepper.SIZE) -> str:
    """Return a line with a pepper of identical bytes."""
    return base64.urlsafe_b64encode(bytes([number]) * size).decode()


class TestCreate:
    """A new file."""

    def test_private(self, path: Path) -> None:
        """A new file has mode 0600, whatever the umask."""
        before = os.umask(0)
        try:
            pepper.create(path)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o600

    def test_one_pepper(self, path: Path) -> None:
        """A new file has one pepper of 32 bytes, different each time."""
        pepper.create(path)
        pepper.create(path.with_name("other"))
        (one,), (other,) = pepper.load(path), pepper.load(path.with_name("other"))
        assert len(one.secret) == 32
        assert one != other

    def test_an_existing_file_is_kept(self, path: Path) -> None:
        """An existing file is refused and kept: without its peppers every digest would be lost."""
        write(path, "anything")
        with pytest.raises(SetupError, match=f"{path} already exists"):
            pepper.create(path)
        assert path.read_text() == "anything"

    def test_all_or_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the disk is full, no file without a pepper remains."""
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk)
            with pytest.raises(SetupError, match="No space left on device"):
                pepper.create(path)
        assert list(path.parent.iterdir()) == []

    def test_a_given_pepper(self, path: Path) -> None:
        """A pepper generated earlier can be written to the file."""
        first = pepper.generate()
        pepper.create(path, first)
        assert pepper.load(path) == (first,)


def full_disk(_: int) -> None:
    """Fail as on a full disk."""
    raise OSError(28, "No space left on device")


def forbidden(*_: object) -> int:
    """Fail as for another user's file."""
    raise PermissionError(13, "Permission denied")


class TestLoad:
    """Reading the file."""

    def test_order(self, path: Path) -> None:
        """Peppers are returned in the file's order: the newest is first."""
        write(path, f"{line(1)}\n{line(2)}\n{line(3)}\n")
        assert [found.secret[0] for found in pepper.load(path)] == [1, 2, 3]

    def test_comments_and_blanks(self, path: Path) -> None:
        """Comments, empty lines, surrounding white space and the kind of line end are ignored."""
        write(path, f"# one\r\n\r\n  {line(1)} \r\n # two\n\t\n{line(2)}")
        assert [found.secret[0] for found in pepper.load(path)] == [1, 2]

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("not base64!\n", 1),
            (f"{line(1)}\nnot base64!\n", 2),
            (f"# comment\n\n{line(1)}\n{line(2)[:-4]}\n", 4),
            (f"{line(1, 31)}\n", 1),
            (f"{line(1, 33)}\n", 1),
            (f"{line(1)} {line(2)}\n", 1),
            (f"{line(1)} # comment\n", 1),
        ],
        ids=["no base64", "the second line", "cut off", "31 bytes", "33 bytes", "two in a line", "comment behind it"],
    )
    def test_damage_is_named(self, path: Path, text: str, number: int) -> None:
        """A damaged line is reported by its number and file, and not shown, because it may be most of a pepper."""
        write(path, text)
        with pytest.raises(SetupError, match=f"^line {number} of the pepper file {path} ") as caught:
            pepper.load(path)
        assert text.splitlines()[number - 1] not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"], ids=["empty", "blank", "comments"])
    def test_no_pepper(self, path: Path, text: str) -> None:
        """A file without a pepper is refused: it differs from a missing file."""
        write(path, text)
        with pytest.raises(SetupError, match=f"{path} holds no pepper"):
            pepper.load(path)

    def test_missing(self, path: Path) -> None:
        """A missing file is refused with its name."""
        with pytest.raises(SetupError, match=f"no pepper file {path}"):
            pepper.load(path)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o644])
    def test_readable_by_others(self, path: Path, mode: int) -> None:
        """A file that group or others can access is refused, and the message has the command that corrects it."""
        write(path, line(1), mode)
        with pytest.raises(SetupError, match=f"chmod 600 {path}"):
            pepper.load(path)

    @pytest.mark.parametrize("mode", [0o600, 0o400])
    def test_private(self, path: Path, mode: int) -> None:
        """A file that only its owner can access is read, even if it is read-only."""
        write(path, line(1), mode)
        assert len(pepper.load(path)) == 1

    @pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
    def test_no_regular_file(self, path: Path, kind: str) -> None:
        """A folder, a pipe or a device is refused at once with its name: opening a pipe would block."""
        if kind == "folder":
            path.mkdir(mode=0o700)
        elif kind == "pipe":
            os.mkfifo(path, 0o600)
        else:
            path = Path(os.devnull)
        with pytest.raises(SetupError, match=f"{path} is not a regular file: name one in --pepper-file"):
            pepper.load(path)

    def test_not_allowed(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the file may not be read, the message names the remedy."""
        monkeypatch.setattr(os, "open", forbidden)
        with pytest.raises(SetupError, match=f"{path} cannot be read by this user: run the server as"):
            pepper.load(path)

    def test_not_text(self, path: Path) -> None:
        """A file that is not text is refused, and its bytes are not shown."""
        write(path, b"\xff\xfe" * 20)
        with pytest.raises(SetupError, match=f"{path} is not text: restore it"):
            pepper.load(path)

    def test_too_large(self, path: Path) -> None:
        """A file larger than the maximum is refused."""
        write(path, "#" * (pepper.LARGEST + 1))
        with pytest.raises(SetupError, match=f"{path} is larger than 1024 KiB"):
            pepper.load(path)


class TestRotate:
    """A new pepper."""

    def test_a_link_stays_a_link(self, path: Path) -> None:
        """If the path is a link, the file that it leads to gets the pepper, and keeps its owner."""
        target = path.with_name("elsewhere")
        write(target, f"{line(1)}\n")
        if os.geteuid() == 0:
            os.chown(target, 65_534, 65_534)
        path.symlink_to(target)
        new = pepper.rotate(path)
        assert path.is_symlink()
        assert pepper.load(target)[0] == new
        assert target.stat().st_uid == (65_534 if os.geteuid() == 0 else os.geteuid())

    def test_at_the_same_time(self, path: Path) -> None:
        """Of peppers that are added at the same time, none is lost."""
        write(path, f"{line(1)}\n")
        with ThreadPoolExecutor(8) as threads:
            added = list(threads.map(lambda _: pepper.rotate(path), range(16)))
        assert {each.id for each in added} <= {each.id for each in pepper.load(path)}
        assert len(pepper.load(path)) == 17

    def test_newest_first(self, path: Path) -> None:
        """The new pepper comes first and is returned; the others keep their order."""
        write(path, f"{line(1)}\n{line(2)}\n")
        new = pepper.rotate(path)
        found = pepper.load(path)
        assert found[0] == new
        assert [older.secret[0] for older in found[1:]] == [1, 2]
        assert new not in found[1:]

    def test_private(self, path: Path) -> None:
        """The new file has mode 0600, and no temporary file remains."""
        pepper.create(path)
        pepper.rotate(path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(path.parent.iterdir()) == [path]

    def test_all_or_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the disk is full, the old file is unchanged, and a retry succeeds."""
        pepper.create(path)
        before = path.read_bytes()

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full_disk)
            with pytest.raises(SetupError, match=rf"no pepper was added to {path}, which is unchanged: No space"):
                pepper.rotate(path)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]
        pepper.rotate(path)
        assert len(pepper.load(path)) == 2

    def test_never_half(self, path: Path) -> None:
        """A server that is reading the file during a rotation reads the complete old one."""
        pepper.create(path)
        with path.open("rb") as reading:
            begin = reading.read(5)
            pepper.rotate(path)
            old = begin + reading.read()
        write(path.with_name("old"), old)
        assert pepper.load(path.with_name("old")) == pepper.load(path)[1:]

    def test_reaches_the_disk(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The new file is synced to disk before it replaces the old one."""
        pepper.create(path)
        before = path.read_bytes()
        seen: list[bytes] = []
        monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_bytes()))
        pepper.rotate(path)
        assert seen[0] == before

    def test_missing(self, path: Path) -> None:
        """Without a file, rotate is refused and creates none."""
        with pytest.raises(SetupError, match="no pepper file"):
            pepper.rotate(path)
        assert not path.exists()


class TestPepper:
    """A pepper."""

    def test_id(self) -> None:
        """A pepper's id is 12 hexadecimal digits, the same for the same pepper, and contains none of its bytes."""
        one, other = Pepper(bytes(32)), Pepper(bytes(31) + b"\x01")
        assert one.id == Pepper(bytes(32)).id != other.id
        assert len(one.id) == 12
        assert int(one.id, 16)

    def test_repr_is_silent(self) -> None:
        """A pepper's repr does not show it."""
        assert repr(Pepper(b"secret" * 5)) == "Pepper()"
