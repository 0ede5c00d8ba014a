"""The form of a key: ``<prefix>_<id>_<secret><check>``, for example ``acme_live_<16 characters>_<49 characters>``.

Nothing here needs a server, a file or the network. A well-formed key may still be unknown, revoked or expired. A
malformed one can be refused at once: after any single typing error the check does not match.
The form is fixed (docs/contract.md, "The form of a key"). The clients in all languages run the same test vectors
(``tests/vectors/keyformat.json``).
"""

import re
import zlib
from dataclasses import dataclass, field
from typing import Final

__all__ = [
    "ALPHABET",
    "CHECK_LENGTH",
    "ID_LENGTH",
    "MAX_LENGTH",
    "PATTERN",
    "PREFIX_PATTERN",
    "SECRET_LENGTH",
    "MalformedKey",
    "ParsedKey",
    "build",
    "checksum",
    "is_well_formed",
    "parse",
    "valid_prefix",
]

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The 62 digits of ids, secrets and checks, in the order of their values."""

ID_LENGTH: Final = 16
"""Characters in a key's id."""

SECRET_LENGTH: Final = 43
"""Characters in a key's secret: 256 bits in base 62."""

CHECK_LENGTH: Final = 6
"""Characters in a key's check: 32 bits in base 62."""

PREFIX_PATTERN: Final = re.compile(r"[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?", re.ASCII)
"""A prefix, if the whole text matches (see `valid_prefix`)."""

_PAIRS: Final = [one + other for one in ALPHABET for other in ALPHABET]

MAX_LENGTH: Final = 32 + 1 + ID_LENGTH + 1 + SECRET_LENGTH + CHECK_LENGTH
"""Characters in the longest possible key."""

PATTERN: Final = re.compile(r"\b[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}\b", re.ASCII)
"""Finds keys in other text, for secret scanners and log filters. It does not verify the check; `parse` does."""

# An underscore in the prefix is not ambiguous: the last 66 characters have a fixed length and one underscore.
_WHOLE_KEY: Final = re.compile(
    rf"({PREFIX_PATTERN.pattern})_([0-9A-Za-z]{{{ID_LENGTH}}})"
    rf"_([0-9A-Za-z]{{{SECRET_LENGTH}}})([0-9A-Za-z]{{{CHECK_LENGTH}}})",
    re.ASCII,
)


class MalformedKey(ValueError):
    """The text is not a key. The message says what is wrong with it and never repeats any part of it."""


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The parts of a well-formed key. Its repr does not show the secret; its fields do."""

    prefix: str
    """The prefix chosen when the key was created, ``acme_live`` for example."""

    id: str
    """The id by which the key is managed. Not a secret."""

    secret: str = field(repr=False)
    """The part that proves possession, without the check."""

    @property
    def key_prefix(self) -> str:
        """Return everything before the secret, ``acme_live_<id>_`` for example. A list may show it."""
        return f"{self.prefix}_{self.id}_"


def parse(text: str) -> ParsedKey:
    """Split a key into its parts, after verifying its form and its check.

    It takes a few microseconds, however long the text is.

    Raises:
        MalformedKey: The text is not exactly one key. White space around it counts too.

    """
    if len(text) > MAX_LENGTH:
        raise MalformedKey("too long for a key")
    match = _WHOLE_KEY.fullmatch(text)
    if match is None:
        raise MalformedKey("not of the form <prefix>_<id>_<secret><check>")
    prefix, key_id, secret, check = match.groups()
    if checksum(text[:-CHECK_LENGTH]) != check:
        raise MalformedKey("the check at the end does not match: probably a typing error")
    return ParsedKey(prefix, key_id, secret)


def is_well_formed(text: str) -> bool:
    """Return whether `parse` accepts the text."""
    try:
        parse(text)
    except MalformedKey:
        return False
    return True


def build(prefix: str, key_id: str, secret: str) -> str:
    """Join the parts of a key and append the check. The inverse of `parse`.

    Raises:
        ValueError: A part has the wrong form. The message names the part and never shows it.

    """
    if not valid_prefix(prefix):
        raise ValueError(f"a prefix must match {PREFIX_PATTERN.pattern}")
    if not _is_base62(key_id, ID_LENGTH):
        raise ValueError(f"an id must be {ID_LENGTH} base62 characters")
    if not _is_base62(secret, SECRET_LENGTH):
        raise ValueError(f"a secret must be {SECRET_LENGTH} base62 characters")
    text = f"{prefix}_{key_id}_{secret}"
    return text + checksum(text)


def valid_prefix(prefix: str) -> bool:
    """Return whether a key may begin with this prefix: ``[a-z][a-z0-9]{1,15}(_[a-z0-9]{1,15})?``."""
    return PREFIX_PATTERN.fullmatch(prefix) is not None


def checksum(text_before: str) -> str:
    """Return the check that ends a key: the CRC-32 of the text before it, as six base62 digits, the highest first.

    It finds typing errors and proves nothing: anyone can compute it.

    Raises:
        UnicodeEncodeError: The text is not ASCII.

    """
    value, low = divmod(zlib.crc32(text_before.encode("ascii")), len(_PAIRS))
    high, middle = divmod(value, len(_PAIRS))
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def _is_base62(text: str, length: int) -> bool:
    return len(text) == length and all(character in ALPHABET for character in text)
