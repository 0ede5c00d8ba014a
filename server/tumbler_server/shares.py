"""Limits on calls and connections: how many at a time, for all and for one project, and how long each may take."""

from dataclasses import dataclass

from tumbler_server.limits import KIB, MIB, Limit


@dataclass(frozen=True)
class CrowdLimit:
    """Calls of one kind from their headers until their answer is sent: how many, and how many of one project.

    Where the caller has no project, a connection counts as one; such calls give way to each other.
    """

    name: str
    most: int
    most_each: int
    gives_way: bool = False

    @property
    def row(self) -> Limit:
        """Return the crowd's row in the table."""
        if self.gives_way:
            beyond = (
                f"{self.most_each:,} of one connection: RESOURCE_EXHAUSTED with RetryInfo; where all places are taken, "
                "the one that has waited longest for anything, or for its answer to be taken, is ended"
            )
        else:
            beyond = (
                f"{self.most_each:,} of one project, and as many as are free; then RESOURCE_EXHAUSTED with RetryInfo"
            )
        return Limit(f"calls in flight, {self.name}", self.most, "calls", beyond)


@dataclass(frozen=True)
class LaneLimit:
    """Work of one kind: how much of it goes on at a time, for all projects and for one, and how much may wait."""

    name: str
    places: int
    share: int
    waiting: int
    waiting_each: int

    @property
    def row(self) -> Limit:
        """Return the lane's row in the table."""
        return Limit(
            f"calls under way in the lane “{self.name}”",
            self.places,
            "calls",
            f"{self.share} of one project; {self.waiting:,} wait, {self.waiting_each:,} of one project; "
            "then RESOURCE_EXHAUSTED with RetryInfo",
        )


_UNREAD = "RESOURCE_EXHAUSTED with RetryInfo, for methods with long answers"

SECONDS_TO_SEND = Limit("time to send a request", 10, "seconds", "DEADLINE_EXCEEDED, REQUEST_TOO_SLOW")
SECONDS_TO_READ = Limit("time to take an answer", 60, "seconds", "the call is cancelled")
LONG_ANSWER = Limit("an answer that is not counted among those unread", 64 * KIB, "bytes", "it is counted")
UNREAD_OF_A_PROJECT = Limit("a project's long answers that are unread", 16 * MIB, "bytes", _UNREAD)
UNREAD = Limit(
    "all long answers that are unread", 64 * MIB, "bytes", f"a project has as much as is free; then {_UNREAD}"
)
HEALTH_BYTES = Limit("a health check", 256, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
REFLECTION_BYTES = Limit("a question of a reflection stream", 1 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
SECONDS_TO_ASK = Limit("time between two questions of a reflection stream", 30, "seconds", "the stream ends")
PROOFS_OF_A_KEY = Limit(
    "secrets presented for one key that bcrypt checks at a time", 2, "secrets", "RESOURCE_EXHAUSTED with RetryInfo"
)

CONNECTIONS = Limit(
    "connections of a process",
    8_192,
    "connections",
    "closed at once; past a quarter of them, those are cut that have no stream, and nobody let in for 10 s or more",
)
UNEXPLAINED_RATE = Limit(
    "bytes of a connection in a second that no message explains, while gRPC reads without a pause",
    4 * MIB,
    "bytes",
    "strangers, who have it together and each 1 MiB beyond it, are heard no more, and cut 10 s later; a connection on "
    "which somebody was let in is cut; on Linux",
)
PROMPT_REFUSALS = Limit(
    "calls of an address in 10 s that are refused at once, on connections on which nobody was let in",
    100,
    "calls",
    "the refusal comes 5 to 10 s late",
)
LATE_REFUSALS = Limit("refusals that come late, at a time", 4_000, "calls", "the connection is cut")
LAST_WORDS = Limit(
    "calls that end by a status which is not taken yet", 8_192, "calls", "the oldest is reset, without one"
)
STREAMS = Limit("streams of a connection", 100, "streams", "wait at the client, by HTTP/2's own rules")
PENDING = Limit("calls of a method that wait to be taken up", 4_000, "calls", "CANCELLED, by gRPC itself")
SECONDS_PENDING = Limit("time that a call waits to be taken up", 2, "seconds", "CANCELLED, by gRPC itself")
HEADER_BYTES = Limit(
    "headers of a call",
    16 * KIB,
    "bytes",
    "INVALID_ARGUMENT, REQUEST_TOO_LARGE; the connection is cut unless somebody was let in on it, past 256 KiB always",
)
ABSURD = 256 * KIB
"""Bytes of headers that no proxy lets through by default."""
SECONDS_TO_SHAKE_HANDS = Limit("time to open a connection, TLS included", 10, "seconds", "closed")
SECONDS_IDLE = Limit("idle time of a connection", 900, "seconds", "closed in order (GOAWAY)")
SECONDS_OF_AGE = Limit("age of a connection", 3_600, "seconds", "closed in order (GOAWAY); calls under way have 300 s")
SECONDS_OF_GRACE = 300
PINGS = Limit("pings whose answers a peer has not read", 10_000, "pings", "it is read no further, by gRPC itself")

LIMITS: tuple[Limit, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Limit))
"""The table of what has no lane and no crowd, in the order of the page."""

VERIFY_CROWD = CrowdLimit("Verify", 4_000, 1_000)
BATCH_CROWD = CrowdLimit("BatchVerify", 256, 64)
CALL_CROWD = CrowdLimit("other methods", 1_024, 128)
STOP_CROWD = CrowdLimit("Revoke and SetActive", 1_024, 128)
"""Their own, so that no crowd of other calls keeps a key from being stopped."""
WATCH_CROWD = CrowdLimit("Watch", 6_000, 3_000)
OPEN_CROWD = CrowdLimit("methods that need no key", 1_024, 16, gives_way=True)
HEALTH_WATCH_CROWD = CrowdLimit("streams of health.Watch", 1_024, 4, gives_way=True)
REFLECTION_CROWD = CrowdLimit("streams of reflection", 64, 4, gives_way=True)

CROWDS = (
    VERIFY_CROWD,
    BATCH_CROWD,
    CALL_CROWD,
    STOP_CROWD,
    WATCH_CROWD,
    OPEN_CROWD,
    HEALTH_WATCH_CROWD,
    REFLECTION_CROWD,
)
