"""A history of calls and answers, with the instants at which each call began and returned.

Instants are in nanoseconds of ``time.monotonic_ns``, one clock for all processes of a machine. A call began no earlier
than ``invoked``, and had returned by ``returned``. So if one call's ``returned`` is before another's ``invoked``, the
first was over before the second began, whatever the process scheduler did.
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
    """The freshness that a verification demanded."""

    LATENCY = 0
    """minimize_latency: no demand."""
    TOKEN = 1
    """at_least_as_fresh, with the token of the key's own revocation, so only after that has returned."""
    FULL = 2
    """fully_consistent."""


class Revoke(NamedTuple):
    """A key's revocation: when it was first requested, and when that call, or a retry, returned OK."""

    key: int
    invoked: int
    returned: int


class Verify(NamedTuple):
    """A verification. ``answer`` is a VerifyCode, or less than 0 if the call failed; see ``failed``."""

    key: int
    server: str
    freshness: Freshness
    invoked: int
    returned: int
    answer: int


@dataclass(frozen=True)
class History:
    """All calls of a run. Keys are identified by number, so it contains no key's text."""

    revokes: Sequence[Revoke]
    verifies: Sequence[Verify]


def failed(status: grpc.StatusCode) -> int:
    """Return a status as the answer of a call that ended with it."""
    return -int(status.value[0])


PASSING = frozenset(map(failed, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)))
"""The failures that are allowed while a fault is injected, and only then."""


def named(answer: int) -> str:
    """Return the name of an answer."""
    if answer >= 0:
        return pb.VerifyCode.Name(answer).removeprefix("VERIFY_CODE_")
    return next(status.name for status in grpc.StatusCode if status.value[0] == -answer)
