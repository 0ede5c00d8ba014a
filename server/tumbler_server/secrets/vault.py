"""Webhook secrets at rest, encrypted under a key that is not in the database."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12


@dataclass(frozen=True)
class Sealed:
    """A secret as it is stored, and the id of the pepper from which its key is derived."""

    content: bytes = field(repr=False)
    pepper_id: str


class CannotOpen(Exception):
    """The pepper of a sealed secret is missing, or the stored bytes were changed."""


class Vault:
    """Seals and opens secrets with AES-256-GCM. ``keys`` are by pepper id, the newest first, which seals."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {pepper_id: AESGCM(key) for pepper_id, key in keys.items()}
        self.newest = next(iter(keys), "")
        """The id of the pepper that seals. Empty if there is none: nothing can then be sealed."""

    def seal(self, secret: bytes, context: str) -> Sealed:
        """Seal a secret. It can be opened only with the same ``context``."""
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
