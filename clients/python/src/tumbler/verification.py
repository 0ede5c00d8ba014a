"""What is told of a presented key."""

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tumbler.decide import Code

__all__ = ["Verification"]

NOTHING: Mapping[str, str] = types.MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on a presented key, and whose it is. True only when the key may do what was asked.

    With MALFORMED and NOT_FOUND nothing is told of the key: every other field is empty.
    """

    code: Code
    """Why. For logs and operators, not for whoever presented the key."""

    key_id: str = ""
    """The key's id; no secret."""

    project_id: str = ""
    """The key's project."""

    environment_id: str = ""
    """The key's environment; empty: it has none."""

    owner_id: str = ""
    """On whose behalf the key acts, as whoever made it wrote it; may be empty."""

    name: str = ""
    """The key's name, for people; not unique."""

    scopes: tuple[str, ...] = ()
    """All that the key grants, not only what was asked for."""

    metadata: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """What was noted with the key; read-only."""

    expire_time: datetime | None = None
    """The first instant (UTC) at which the key is not accepted; None: it never expires."""

    cached: bool = False
    """Whether this was decided on a remembered record, without a call."""

    until: int = field(default=0, repr=False, compare=False)
    """For the guards: until when, by the verifier's clock, an open stream may rest on it while the stream of changes is
    alive."""

    @property
    def valid(self) -> bool:
        """Whether the key may do what was asked: the code is VALID."""
        return self.code is Code.VALID

    def __bool__(self) -> bool:
        return self.code is Code.VALID
