"""Claim tokens, with which a key's owner fetches the successor of a key whose rotation is due.

A token names a key and the event that announced its rotation. It is signed under the pepper, which is not in the
database, so access to the database is not enough to forge one. Tokens are not stored. The key's row decides whether a
token is valid: once the row names another announcement, or none, the token is void.
"""

import hashlib
from collections.abc import Sequence

import itsdangerous
from itsdangerous.encoding import base64_decode, base64_encode

from tumbler_server.errors import ClaimTokenInvalid, WebhooksNeedPepper
from tumbler_server.secrets.pepper import Pepper

PREFIX = "claim_"
"""The prefix of tokens, by which people and secret scanners recognize them."""

_LONGEST = 512


class ClaimTokens:
    """Issues and reads claim tokens. The newest pepper signs, all verify."""

    def __init__(self, peppers: Sequence[Pepper]) -> None:
        self._serializer = None
        if peppers:
            keys = [pepper.derive("claim tokens") for pepper in reversed(peppers)]  # the last key is the one that signs
            self._serializer = itsdangerous.URLSafeSerializer(
                keys, salt="claim", signer_kwargs={"digest_method": hashlib.sha256}
            )

    def token(self, key_id: str, due_revision: int) -> str:
        """Return the token for a key and the revision of its ROTATION_DUE event. Raises ``WebhooksNeedPepper``."""
        if self._serializer is None:
            raise WebhooksNeedPepper
        return PREFIX + str(self._serializer.dumps([key_id, due_revision]))

    def read(self, token: str) -> tuple[str, int]:
        """Return the key id and the revision that a token names. Raises ``ClaimTokenInvalid``."""
        try:
            if self._serializer is None or len(token) > _LONGEST or not token.startswith(PREFIX):
                raise itsdangerous.BadData("no token")
            key_id, due_revision = self._serializer.loads(token[len(PREFIX) :])
            # Several texts decode to one signature, and only one of them was issued.
            signature = token.rpartition(".")[2]
            if base64_encode(base64_decode(signature)).decode() != signature:
                raise itsdangerous.BadData("another spelling of a signature")
        except itsdangerous.BadData:
            raise ClaimTokenInvalid from None
        return str(key_id), int(due_revision)
