"""The result of a verification."""

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tumbler.decide import Code

__all__ = ["Verification"]

NOTHING: Mapping[str, str] = types.MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on a presented key, and the key's identity. True only when the key may do what was asked.

    With MALFORMED and NOT_FOUND all other fields are empty.
    """

    code: Code
    """The reason. For logs and operators, not for the caller who presented the key."""

    key_id: str = ""
    """The key's id. Not a secret."""

    project_id: str = ""
    """The key's project."""

    environment_id: str = ""
    """The key's environment. Empty if it has none."""

    owner_id: str = ""
    """On whose behalf the key acts, as its creator wrote it. May be empty."""

    name: str = ""
    """The key's name, for people. Not unique."""

    scopes: tuple[str, ...] = ()
    """All scopes that the key grants, not only the required ones."""

    metadata: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """The key's metadata. Read-only."""

    expire_time: datetime | None = None
    """The first instant (UTC) at which the key is not accepted. None if it never expires."""

    cached: bool = False
    """Whether a cached record decided this, without a call."""

    until: int = field(default=0, repr=False, compare=False)
    """For the guards: until when, by the verifier's clock, an open stream may rely on this while the stream of changes
    is fresh."""

    @property
    def valid(self) -> bool:
        """Whether the key may do what was asked, that is, whether the code is VALID."""
        return self.code is Code.VALID

    def __bool__(self) -> bool:
        return self.code is Code.VALID
