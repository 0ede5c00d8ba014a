"""Reading of signed texts, in the one form in which they are issued."""

from typing import Any

import itsdangerous


def loads(serializer: itsdangerous.URLSafeSerializer, text: str, longest: int) -> Any:
    """Return what a signed text of at most ``longest`` characters holds. Raises ``itsdangerous.BadData``."""
    if len(text) > longest:
        raise itsdangerous.BadData("too long")
    found = serializer.loads(text)
    # The signature covers the rest as it is written, but has several spellings itself: base64 may be padded, and its
    # last character has unused bits.
    signature = text.rpartition(".")[2]
    if itsdangerous.base64_encode(itsdangerous.base64_decode(signature)).decode() != signature:
        raise itsdangerous.BadData("not as issued")
    return found
