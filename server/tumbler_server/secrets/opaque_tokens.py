"""Opaque tokens for callers: page tokens (where a page continues) and consistency tokens (how fresh an answer must be).

Both are signed under the installation's own secret, so modified and foreign tokens are detected. Tokens are not secret
and grant nothing: each call checks again what the caller may see.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence

import itsdangerous

from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.store.database import Store

_LONGEST = 4_096


class OpaqueTokens:
    """Issues and reads an installation's tokens."""

    def __init__(self, secret: bytes) -> None:
        self._pages = _serializer(secret, "page")
        self._revisions = _serializer(secret, "revision")
        # Nearly all answers at a given time name the same revision.
        self.consistency = functools.lru_cache(maxsize=64)(self._consistency)

    def page(self, fingerprint: str, value: int | str, key_id: str, skip: int = 0) -> str:
        """Return the token of the page after the key with this sort value and id, for the filter's fingerprint.

        Events need no id, since their revision is unique. ``skip`` is how many further keys to leave out.
        """
        return str(self._pages.dumps([fingerprint, value, key_id, skip]))

    def read_page(self, token: str, fingerprint: str) -> tuple[int | str, str, int]:
        """Return the sort value and id after which a page begins, and the keys to skip. Raises ``InvalidFields``."""
        try:
            if len(token) > _LONGEST:
                raise itsdangerous.BadData("too long")
            found, value, key_id, *skip = self._pages.loads(token)  # older tokens have no skip
        except itsdangerous.BadData:
            raise InvalidFields([Violation("page_token", "was not issued by this service, or was changed")]) from None
        if found != fingerprint:
            raise InvalidFields([Violation("page_token", "belongs to another filter or order; start again without it")])
        return value, key_id, *(skip or [0])

    def revision(self, token: str, field: str = "consistency.at_least_as_fresh") -> int:
        """Return the revision in a consistency token or a stream's cursor. Raises ``InvalidFields``."""
        try:
            if len(token) > _LONGEST:
                raise itsdangerous.BadData("too long")
            return int(self._revisions.loads(token))
        except itsdangerous.BadData:
            raise InvalidFields([Violation(field, "was not issued by this installation, or was changed")]) from None

    def _consistency(self, revision: int) -> str:
        return str(self._revisions.dumps(revision))


def fingerprint(parts: Sequence[object]) -> str:
    """Return a short digest of a list's filter and order, to which its page tokens are bound."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return base64.urlsafe_b64encode(digest[:12]).decode()


def open_opaque_tokens(store: Store) -> OpaqueTokens:
    """Return the tokens of the installation that owns this database."""
    ((secret,),) = store.read("SELECT token_secret FROM installation WHERE id = 1")
    return OpaqueTokens(bytes(secret))


def _serializer(secret: bytes, salt: str) -> itsdangerous.URLSafeSerializer:
    return itsdangerous.URLSafeSerializer(secret, salt=salt, signer_kwargs={"digest_method": hashlib.sha256})
