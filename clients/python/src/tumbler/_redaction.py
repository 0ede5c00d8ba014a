"""Texts that come from outside, without the keys in them. The clients in all languages have the same function.

A server, or a proxy before it, may quote a presented key or the verifier's own. So what a status says passes through
`redact` before it goes into an error or a log line. ``tests/vectors/redaction.json`` tests all clients.
"""

import re
from typing import Final

__all__ = ["redact"]

# Unlike `keyformat.PATTERN`: also without the prefix, inside a longer word, and cut short. Of a secret that is cut
# before its 20th character, more than 130 bits are left to guess.
_KEY: Final = re.compile(
    r"(?:[a-z][a-z0-9]{1,15}(?:_[a-z0-9]{1,15})?_)?[0-9A-Za-z]{16}_[0-9A-Za-z]{20,}",
    re.ASCII,
)


def redact(text: str) -> str:
    """Return the text with ``<key>`` in place of all that looks like a key, of whatever installation."""
    return _KEY.sub("<key>", text)
