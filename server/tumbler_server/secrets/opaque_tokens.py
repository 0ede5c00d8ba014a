"""Opaque tokens for callers: page tokens (where a page continues) and consistency tokens (how fresh an answer must be).

Both are signed under the installation's own secret, so modified and foreign tokens are detected. A consistency token
also names the history that its revision belongs to; see ``events.lineage``. Tokens are not secret and grant nothing:
each call checks again what the caller may see.
"""

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import itsdangerous

from tumbler_server.errors import InvalidFields, Violation
from tumbler_server.secrets import signing
from tumbler_server.store.database import Store

_LONGEST = 4_096


class Point(NamedTuple):
    """A revision in one history of the log, or in any history if ``mark`` is empty."""

    revision: int
    mark: str = ""


START = Point(0)
"""The point before all events. Every history has it."""


class OpaqueTokens:
    """Issues and reads an installation's tokens. ``mark`` returns a revision's mark."""

    def __init__(self, secret: bytes, mark: Callable[[int], str]) -> None:
        self._mark = mark
        self._pages = _serializer(secret, "page")
        self._revisions = _serializer(secret, "revision")
        # Nearly all answers at a given time name the same revision.
        self.consistency = functools.lru_cache(maxsize=64)(self._consistency)

    def page(self, fingerprint: str, value: int | str, key_id: str, skip: int = 0) -> str:
        """Return the token of the page after the key with this sort value and id, for the filter's fingerprint.

        Events need no id, since their revision is unique; they have a mark instead. ``skip`` is how many further keys
        to leave out.
        """
        return str(self._pages.dumps([fingerprint, value, key_id, skip]))

    def read_page(self, token: str, fingerprint: str) -> tuple[int | str, str, int]:
        """Return the sort value and id after which a page begins, and the keys to skip. Raises ``InvalidFields``."""
        try:
            found, value, key_id, *skip = signing.loads(self._pages, token, _LONGEST)  # older tokens have no skip
        except itsdangerous.BadData:
            raise InvalidFields([Violation("page_token", "was not issued by this service, or was changed")]) from None
        if found != fingerprint:
            raise InvalidFields([Violation("page_token", "belongs to another filter or order; start again without it")])
        return value, key_id, *(skip or [0])

    def point(self, token: str, field: str = "consistency.at_least_as_fresh") -> Point:
        """Return the point in the log that a consistency token or a stream's cursor names. Raises ``InvalidFields``.

        It need not be in this history.
        """
        try:
            revision, mark = signing.loads(self._revisions, token, _LONGEST)
        except (itsdangerous.BadData, TypeError):  # older tokens have no mark
            raise InvalidFields([Violation(field, "was not issued by this installation, or was changed")]) from None
        return Point(revision, mark)

    def _consistency(self, revision: int) -> str:
        return str(self._revisions.dumps([revision, self._mark(revision)]))


def fingerprint(parts: Sequence[object]) -> str:
    """Return a short digest of a list's filter and order, to which its page tokens are bound."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return base64.urlsafe_b64encode(digest[:12]).decode()


def open_opaque_tokens(store: Store, mark: Callable[[int], str]) -> OpaqueTokens:
    """Return the tokens of the installation that owns this database. ``mark`` is its lineage's."""
    return OpaqueTokens(token_secret(store), mark)


def token_secret(store: Store) -> bytes:
    """Return the installation's own secret, which signs its tokens and keys its marks."""
    ((secret,),) = store.read("SELECT token_secret FROM installation WHERE id = 1")
    return bytes(secret)


def _serializer(secret: bytes, salt: str) -> itsdangerous.URLSafeSerializer:
    return itsdangerous.URLSafeSerializer(secret, salt=salt, signer_kwargs={"digest_method": hashlib.sha256})
