"""Secrets: made, sealed for storage, and proven. The only module that knows bcrypt, and that compares secrets."""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import bcrypt

from tumbler import keyformat
from tumbler_server.keys.pepper import Pepper
from tumbler_server.keys.record import Sealed

DEFAULT_COST = 10
CHEAPEST_COST = 4
"""bcrypt's own minimum: some 2 ms, for tests."""
HIGHEST_COST = 16


@dataclass(frozen=True)
class NewKey:
    """A key that was just made. Its text is shown once and never stored."""

    id: str
    key_prefix: str
    text: str = field(repr=False)
    secret: str = field(repr=False)


def generate(prefix: str) -> NewKey:
    """Make a key with a random id, and a secret of 256 bits from the operating system's secure source."""
    key_id = _random(keyformat.ID_LENGTH)
    secret = _random(keyformat.SECRET_LENGTH)
    text = keyformat.build(prefix, key_id, secret)
    return NewKey(id=key_id, key_prefix=keyformat.parse(text).key_prefix, text=text, secret=secret)


def same(one: bytes, other: bytes) -> bool:
    """Compare two byte strings in a time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)


class Hasher:
    """Seals secrets and proves them. The first pepper signs, all verify; with none, bcrypt alone does both."""

    def __init__(self, cost: int = DEFAULT_COST, peppers: Sequence[Pepper] = ()) -> None:
        self._cost = cost
        self._peppers = {pepper.id: pepper for pepper in peppers}
        self._newest = peppers[0] if peppers else None

    def seal(self, text: str, secret: str) -> Sealed:
        """Return what to store for a key. Takes as long as bcrypt takes: never call it inside a transaction."""
        salt = bcrypt.gensalt(self._cost)
        return Sealed(
            secret_hash=bcrypt.hashpw(secret.encode(), salt).decode(),
            digest=_digest(self._newest, text) if self._newest else None,
            pepper_id=self._newest.id if self._newest else "",
        )

    def check_digest(self, text: str, sealed: Sealed) -> bool | None:
        """Say whether ``text`` is the sealed key, or None where no pepper at hand made its digest."""
        pepper = self._peppers.get(sealed.pepper_id)
        if pepper is None or sealed.digest is None:
            return None
        return same(_digest(pepper, text), sealed.digest)

    def check_bcrypt(self, secret: str, sealed: Sealed) -> bool:
        """Say whether ``secret`` is the sealed one, the expensive way."""
        return bcrypt.checkpw(secret.encode(), sealed.secret_hash.encode())

    def needs_rehash(self, sealed: Sealed) -> bool:
        """Say whether the key should be sealed anew: the cost went up, or another pepper signs now."""
        if int(sealed.secret_hash[4:6]) < self._cost:
            return True
        return self._newest is not None and sealed.pepper_id != self._newest.id


def _random(length: int) -> str:
    return "".join(secrets.choice(keyformat.ALPHABET) for _ in range(length))


def _digest(pepper: Pepper, text: str) -> bytes:
    return hmac.digest(pepper.secret, text.encode(), "sha256")
