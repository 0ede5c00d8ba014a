"""Webhook secrets at rest: sealed under a key that is not in the database."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12


@dataclass(frozen=True)
class Sealed:
    """A secret as it is stored, and the id of the pepper that its key came from."""

    content: bytes = field(repr=False)
    pepper_id: str


class CannotOpen(Exception):
    """The pepper that a secret was sealed under is gone, or what is stored was changed."""


class Vault:
    """Seals and opens secrets by AES-256-GCM. ``keys`` are named by their pepper's id, the newest first; it seals."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {pepper_id: AESGCM(key) for pepper_id, key in keys.items()}
        self.newest = next(iter(keys), "")
        """The id of the pepper that seals; empty where there is none, and nothing can be sealed."""

    def seal(self, secret: bytes, context: str) -> Sealed:
        """Seal a secret for one place: it can be opened only where the same ``context`` is given."""
        nonce = secrets.token_bytes(_NONCE)
        content = nonce + self._ciphers[self.newest].encrypt(nonce, secret, context.encode())
        return Sealed(content, self.newest)

    def open(self, sealed: Sealed, context: str) -> bytes:
        """Return a sealed secret. Raises ``CannotOpen``."""
        cipher = self._ciphers.get(sealed.pepper_id)
        if cipher is None:
            raise CannotOpen
        try:
            return cipher.decrypt(sealed.content[:_NONCE], sealed.content[_NONCE:], context.encode())
        except InvalidTag:
            raise CannotOpen from None
