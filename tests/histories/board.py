"""The shared memory by which the processes of a run communicate.

Each number has one writer. The token of a revocation is written before the count that includes it.
"""

import ctypes
from multiprocessing.context import SpawnContext
from typing import Any

_TOKEN = 256
"""Bytes reserved for a token. Current tokens have some 40."""


class Board:
    """The progress of a run. The parent creates it, and passes it to each process at its start."""

    def __init__(self, context: SpawnContext, keys: int, verifiers: int) -> None:
        self._numbers: Any = context.RawArray(ctypes.c_int64, 3)
        self._warmed: Any = context.RawArray(ctypes.c_int64, verifiers)
        self._tokens: Any = context.RawArray(ctypes.c_char, keys * _TOKEN)

    @property
    def aimed(self) -> int:
        """The key that is being revoked, or is revoked next, or was revoked last."""
        return int(self._numbers[0])

    def aim(self, key: int) -> None:
        """Point all verifiers at the key that is revoked next."""
        self._numbers[0] = key

    @property
    def revoked(self) -> int:
        """The number of keys, from the first on, whose revocations have returned."""
        return int(self._numbers[1])

    def fell(self, key: int, token: str) -> None:
        """Publish that a key's revocation has returned, with its token."""
        text = token.encode()
        assert len(text) < _TOKEN
        self._tokens[key * _TOKEN : key * _TOKEN + len(text)] = text
        self._numbers[1] = key + 1

    def token(self, key: int) -> str:
        """Return the token of a revocation that has returned."""
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
        """The number of keys, from the first on, that every verifier has found VALID."""
        return int(min(self._warmed))

    def warm(self, verifier: int, keys: int) -> None:
        """Publish the number of keys, from the first on, that a verifier has found VALID."""
        self._warmed[verifier] = keys
