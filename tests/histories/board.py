"""What the processes of a run tell each other while it lasts, in memory that they share.

Each number has one writer. The tokens of revocations are written before the count that includes them.
"""

import ctypes
from multiprocessing.context import SpawnContext
from typing import Any

_TOKEN = 256
"""Bytes kept for a token; those of today have some 40."""


class Board:
    """Where the run stands. Made by the parent, and handed to each process when that is started."""

    def __init__(self, context: SpawnContext, keys: int, verifiers: int) -> None:
        self._numbers: Any = context.RawArray(ctypes.c_int64, 3)
        self._warmed: Any = context.RawArray(ctypes.c_int64, verifiers)
        self._tokens: Any = context.RawArray(ctypes.c_char, keys * _TOKEN)

    @property
    def aimed(self) -> int:
        """The key that is revoked now or next, or was revoked last."""
        return int(self._numbers[0])

    def aim(self, key: int) -> None:
        """Turn all verifiers to the key that is to be revoked next."""
        self._numbers[0] = key

    @property
    def revoked(self) -> int:
        """How many keys, from the first on, have been revoked and their revocations returned."""
        return int(self._numbers[1])

    def fell(self, key: int, token: str) -> None:
        """Tell that a key's revocation returned, with this token."""
        text = token.encode()
        assert len(text) < _TOKEN
        self._tokens[key * _TOKEN : key * _TOKEN + len(text)] = text
        self._numbers[1] = key + 1

    def token(self, key: int) -> str:
        """Return the token of a key's revocation, which has returned."""
        kept: bytes = self._tokens[key * _TOKEN : (key + 1) * _TOKEN]
        return kept.rstrip(b"\0").decode()

    @property
    def over(self) -> bool:
        """Whether the verifiers may stop."""
        return bool(self._numbers[2])

    def finish(self) -> None:
        """Let the verifiers stop."""
        self._numbers[2] = 1

    @property
    def warmed(self) -> int:
        """How many keys, from the first on, every verifier has found VALID."""
        return int(min(self._warmed))

    def warm(self, verifier: int, keys: int) -> None:
        """Tell that a verifier has found so many keys VALID, from the first on."""
        self._warmed[verifier] = keys
