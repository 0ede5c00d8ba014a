"""Every limit on what a caller can make this service keep, do or wait for: one table, shown in docs/limits.md.

A test holds the page against this module. A limit that is not here is a mistake.
"""

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Limit:
    """A row of the table. ``beyond`` says what a caller gets, or what happens, past ``most``."""

    what: str
    most: int
    unit: str
    beyond: str


VERIFY_BYTES = Limit("a Verify request", 16 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
BATCH_BYTES = Limit("a BatchVerify request", 512 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
REQUEST_BYTES = Limit("any other request", 128 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
RECORD_BYTES = Limit("a key's record, as sent", 16 * KIB, "bytes", "INVALID_ARGUMENT, INVALID_FIELD")
ANSWER_BYTES = Limit(
    "an answer", 3 * MIB, "bytes", "a list ends a page early; a batch leaves the rest undecided"
)  # gRPC's clients take 4 MiB unless told otherwise

LIMITS: tuple[Limit, ...] = (VERIFY_BYTES, BATCH_BYTES, REQUEST_BYTES, RECORD_BYTES, ANSWER_BYTES)
"""The table, in the order of the page."""
