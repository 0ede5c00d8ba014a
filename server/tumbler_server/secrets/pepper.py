"""The pepper file. Its secrets make the database's digests useless to anyone who has only the database.

It holds one pepper a line, 32 bytes in URL-safe base64, the newest first. ``#`` begins a comment. The newest pepper
signs, all verify.
"""

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tumbler_server.errors import SetupError
from tumbler_server.secrets.vault import Vault

SIZE = 32
"""Bytes of a pepper."""

LARGEST = 1024 * 1024
"""Most bytes of a pepper file: room for more than 20,000 peppers."""

_HEADER = "# Tumbler's peppers, newest first. Keep this file secret, and apart from the database and its backups.\n"


@dataclass(frozen=True)
class Pepper:
    """A key for digests. ``id`` is a fingerprint that identifies the pepper of a digest and reveals nothing else."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """Return the fingerprint: 12 hexadecimal digits."""
        return hashlib.sha256(b"tumbler pepper id" + self.secret).hexdigest()[:12]

    def derive(self, purpose: str) -> bytes:
        """Return a 32-byte key for one purpose, from which neither the pepper nor another derived key can be found."""
        return HKDF(hashes.SHA256(), length=32, salt=None, info=f"tumbler {purpose}".encode()).derive(self.secret)


def vault(peppers: Sequence[Pepper]) -> Vault:
    """Return the vault that encrypts webhook secrets under these peppers."""
    return Vault({pepper.id: pepper.derive("webhook secrets") for pepper in peppers})


def load(path: Path) -> tuple[Pepper, ...]:
    """Return the peppers of the file, newest first.

    Raises ``SetupError`` if the file is missing, unreadable, not a regular file, larger than ``LARGEST``, accessible to
    users other than its owner, empty or damaged.
    """
    try:
        content = _read(path)
    except FileNotFoundError:
        raise SetupError(
            f"there is no pepper file {path}: restore it, or if it is lost run `tumbler-server pepper rotate --create`"
        ) from None
    except PermissionError:
        raise SetupError(
            f"the pepper file {path} cannot be read by this user: run the server as its owner, or chown it"
        ) from None
    except OSError as failure:
        raise SetupError(
            f"the pepper file {path} cannot be read: {failure.strerror}; check the path and the disk"
        ) from None
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise SetupError(
            f"the pepper file {path} is not text: restore it from a copy, or correct the path in --pepper-file"
        ) from None
    peppers = []
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            secret = base64.b64decode(text, altchars=b"-_", validate=True)
        except binascii.Error:
            secret = b""
        if len(secret) != SIZE:
            raise SetupError(f"line {number} of the pepper file {path} is not {SIZE} bytes in URL-safe base64")
        peppers.append(Pepper(secret))
    if not peppers:
        raise SetupError(
            f"the pepper file {path} holds no pepper: restore it, or if it is lost delete this file, and run "
            "`tumbler-server pepper rotate --create`"
        )
    return tuple(peppers)


def _read(path: Path) -> bytes:
    # Without O_NONBLOCK, opening a pipe would block until a writer opens it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SetupError(
                f"the pepper file {path} is not a regular file: name one in --pepper-file, not a folder, pipe or device"
            )
        if found.st_mode & 0o077:
            raise SetupError(f"the pepper file {path} is readable by other users: run chmod 600 {path}")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise SetupError(
            f"the pepper file {path} is larger than {LARGEST // 1024} KiB: is it the right one in --pepper-file?"
        )
    return content


def generate() -> Pepper:
    """Generate a random pepper."""
    return Pepper(secrets.token_bytes(SIZE))


def create(path: Path, first: Pepper | None = None) -> None:
    """Create a pepper file of mode 0600 with one pepper, ``first`` or a new one, and sync it to disk.

    Raises ``SetupError`` if the file already exists or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SetupError(f"the pepper file {path} already exists") from None
    except OSError as failure:
        raise SetupError(f"the pepper file {path} cannot be created: {failure.strerror}") from None
    try:
        _write(descriptor, [first or generate()])
    except OSError as failure:
        path.unlink(missing_ok=True)
        raise SetupError(f"the pepper file {path} cannot be written: {failure.strerror}") from None
    _sync_folder(path)


def rotate(path: Path) -> Pepper:
    """Add a new pepper before the others, atomically, and return it. The file keeps its owner. Raises ``SetupError``.

    Concurrent calls wait for each other, so that each keeps what the others have added.
    """
    path = path.resolve()  # a link stays one
    with _locked(path.parent):
        peppers = load(path)
        staged = path.with_name(path.name + ".new")
        try:
            staged.unlink(missing_ok=True)
            descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            _write(descriptor, [generate(), *peppers])
            owner = path.stat()
            os.chown(staged, owner.st_uid, owner.st_gid)
            staged.replace(path)
        except OSError as failure:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
            raise SetupError(f"no pepper was added to {path}, which is unchanged: {failure.strerror}") from None
        _sync_folder(path)
        return load(path)[0]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that other processes take too, if its file system has such locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # what is done next says why
        yield
        return
    try:
        with contextlib.suppress(OSError):  # some file systems cannot lock
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(descriptor: int, peppers: Sequence[Pepper]) -> None:
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(_HEADER)
        for pepper in peppers:
            file.write(base64.urlsafe_b64encode(pepper.secret).decode() + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
