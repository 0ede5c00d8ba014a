"""What was done and what was answered, each with the instants at which its call began and returned.

Instants are nanoseconds of ``time.monotonic_ns``: one clock for all processes of a machine. A call began no earlier
than its ``invoked`` says and had returned by its ``returned``, so that of two calls of which one returned before the
other was invoked, the first was over before the second began, whatever the scheduler did to us.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import grpc

from tumbler.v1 import api_key_service_pb2 as pb

VALID = int(pb.VERIFY_CODE_VALID)
REVOKED = int(pb.VERIFY_CODE_REVOKED)


class Freshness(enum.IntEnum):
    """How fresh a verification demanded its answer to be."""

    LATENCY = 0
    """minimize_latency: as it comes."""
    TOKEN = 1
    """at_least_as_fresh, with the token of the key's own revocation: made only once that returned."""
    FULL = 2
    """fully_consistent."""


class Revoke(NamedTuple):
    """A key's revocation: when it was first asked for, and when that, or a repetition of it, was answered OK."""

    key: int
    invoked: int
    returned: int


class Verify(NamedTuple):
    """A verification. ``answer`` is a VerifyCode; less than 0 where the call failed; see ``failed``."""

    key: int
    server: str
    freshness: Freshness
    invoked: int
    returned: int
    answer: int


@dataclass(frozen=True)
class History:
    """All that was done in a run. Keys are known by their numbers: no text of a key is in it."""

    revokes: Sequence[Revoke]
    verifies: Sequence[Verify]


def failed(status: grpc.StatusCode) -> int:
    """Return a status as the answer of a call that ended with it."""
    return -int(status.value[0])


PASSING = frozenset(map(failed, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)))
"""What calls may end with while something is broken, and only then."""


def named(answer: int) -> str:
    """Return what an answer is called."""
    if answer >= 0:
        return pb.VerifyCode.Name(answer).removeprefix("VERIFY_CODE_")
    return next(status.name for status in grpc.StatusCode if status.value[0] == -answer)
