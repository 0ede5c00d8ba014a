"""Generation, hashing and proof of secrets. Only this module uses bcrypt and compares secrets."""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import bcrypt

from tumbler import keyformat
from tumbler_server.defaults import BCRYPT_COST
from tumbler_server.secrets.pepper import Pepper


@dataclass(frozen=True)
class NewKey:
    """A newly generated key. Its text is shown once and never stored."""

    id: str
    key_prefix: str
    text: str = field(repr=False)
    secret: str = field(repr=False)


@dataclass(frozen=True)
class HashedSecret:
    """The stored proofs of a secret: its bcrypt hash and, if there was a pepper, a digest. Never shown."""

    secret_hash: str = field(repr=False)
    digest: bytes | None = field(repr=False)
    pepper_id: str


def generate(prefix: str) -> NewKey:
    """Generate a key with a random id and a 256-bit secret from the operating system's secure source."""
    key_id = _random(keyformat.ID_LENGTH)
    secret = _random(keyformat.SECRET_LENGTH)
    text = keyformat.build(prefix, key_id, secret)
    return NewKey(id=key_id, key_prefix=keyformat.parse(text).key_prefix, text=text, secret=secret)


def same(one: bytes, other: bytes) -> bool:
    """Compare two byte strings in constant time."""
    return hmac.compare_digest(one, other)


class Hasher:
    """Hashes and proves secrets. The first pepper signs, all verify. Without peppers, only bcrypt is used."""

    def __init__(self, cost: int = BCRYPT_COST, peppers: Sequence[Pepper] = ()) -> None:
        self._cost = cost
        self._peppers = {pepper.id: pepper for pepper in peppers}
        self._newest = peppers[0] if peppers else None

    def hash(self, text: str, secret: str) -> HashedSecret:
        """Return what to store for a key. This takes as long as bcrypt: never call it inside a transaction."""
        salt = bcrypt.gensalt(self._cost)
        return HashedSecret(
            secret_hash=bcrypt.hashpw(secret.encode(), salt).decode(),
            digest=_digest(self._newest, text) if self._newest else None,
            pepper_id=self._newest.id if self._newest else "",
        )

    def check_digest(self, text: str, hashed: HashedSecret) -> bool | None:
        """Return whether ``text`` is the hashed key, or None if it has no digest or the digest's pepper is missing."""
        pepper = self._peppers.get(hashed.pepper_id)
        if pepper is None or hashed.digest is None:
            return None
        return same(_digest(pepper, text), hashed.digest)

    def check_bcrypt(self, secret: str, hashed: HashedSecret) -> bool:
        """Return whether ``secret`` is the hashed one. This runs bcrypt, which is expensive."""
        return bcrypt.checkpw(secret.encode(), hashed.secret_hash.encode())

    def needs_rehash(self, hashed: HashedSecret) -> bool:
        """Return whether to rehash the key: the cost went up, or another pepper signs now."""
        if int(hashed.secret_hash[4:6]) < self._cost:
            return True
        return self._newest is not None and hashed.pepper_id != self._newest.id


def _random(length: int) -> str:
    return "".join(secrets.choice(keyformat.ALPHABET) for _ in range(length))


def _digest(pepper: Pepper, text: str) -> bytes:
    return hmac.digest(pepper.secret, text.encode(), "sha256")
