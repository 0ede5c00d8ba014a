"""Limits on calls and connections: how many at a time, in all and for each project, and how long each may take."""

from dataclasses import dataclass

from tumbler_server.limits import KIB, MIB, Limit


@dataclass(frozen=True)
class CrowdLimit:
    """How many calls of one kind may be in flight, in all and for one project.

    A call is in flight from its headers until its answer is sent. If the caller has no project, its connection counts
    as one. If ``gives_way``, a new call takes the place of the one that has waited longest.
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
                f"more than {self.most_each:,} of one connection: RESOURCE_EXHAUSTED with RetryInfo; "
                "if all places are taken, the call that has waited longest, for input or for its caller, ends"
            )
        else:
            beyond = (
                f"a project has at most {self.most_each:,}, and at most as many as are free; "
                "beyond that RESOURCE_EXHAUSTED with RetryInfo"
            )
        return Limit(f"calls in flight, {self.name}", self.most, "calls", beyond)


@dataclass(frozen=True)
class LaneLimit:
    """How much work of one kind runs at a time, and how much may wait, in all and for one project."""

    name: str
    places: int
    share: int
    waiting: int
    waiting_each: int

    @property
    def row(self) -> Limit:
        """Return the lane's row in the table."""
        return Limit(
            f"calls running in the lane “{self.name}”",
            self.places,
            "calls",
            f"a project runs at most {self.share}; at most {self.waiting:,} more wait, {self.waiting_each:,} of one "
            "project; beyond that RESOURCE_EXHAUSTED with RetryInfo",
        )


_UNREAD = "RESOURCE_EXHAUSTED with RetryInfo, for methods with long answers"

SECONDS_TO_SEND = Limit("time to send a request", 10, "seconds", "DEADLINE_EXCEEDED, REQUEST_TOO_SLOW")
SECONDS_TO_READ = Limit("time to read an answer", 60, "seconds", "the call is cancelled")
LONG_ANSWER = Limit("an answer that does not count as unread", 64 * KIB, "bytes", "it counts while it is unread")
UNREAD_OF_A_PROJECT = Limit("unread long answers of a project", 16 * MIB, "bytes", _UNREAD)
UNREAD = Limit(
    "all unread long answers", 64 * MIB, "bytes", f"a project has at most as much as is free; beyond that {_UNREAD}"
)
HEALTH_BYTES = Limit("a health check", 256, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
REFLECTION_BYTES = Limit("a request of a reflection stream", 1 * KIB, "bytes", "INVALID_ARGUMENT, REQUEST_TOO_LARGE")
SECONDS_TO_ASK = Limit("time between two requests of a reflection stream", 30, "seconds", "the stream ends")
PROOFS_OF_A_KEY = Limit(
    "secrets presented for one key that bcrypt checks at the same time",
    2,
    "secrets",
    "RESOURCE_EXHAUSTED with RetryInfo",
)

CONNECTIONS = Limit(
    "connections of a process",
    8_192,
    "connections",
    "closed at once; from a quarter of them on, connections are cut that have no stream and had no authenticated call "
    "for 10 s",
)
UNEXPLAINED_RATE = Limit(
    "bytes a second of a connection that no message accounts for, while gRPC reads without a pause",
    4 * MIB,
    "bytes",
    "unauthenticated connections share this limit, and each has 1 MiB beyond it: past that the server drops what they "
    "send, and cuts them 10 s later; an authenticated connection is cut; Linux only",
)
PROMPT_REFUSALS = Limit(
    "immediate refusals of an address in 10 s, on unauthenticated connections",
    100,
    "calls",
    "each refusal is delayed by 5 to 10 s",
)
LATE_REFUSALS = Limit("delayed refusals that wait at the same time", 4_000, "calls", "the connection is cut")
LAST_WORDS = Limit("ended calls whose status is not sent yet", 8_192, "calls", "the oldest is reset, without a status")
STREAMS = Limit("streams of a connection", 100, "streams", "further calls wait at the client, as HTTP/2 requires")
PENDING = Limit("calls of a method that wait to be accepted", 4_000, "calls", "CANCELLED, by gRPC itself")
SECONDS_PENDING = Limit("time that a call waits to be accepted", 2, "seconds", "CANCELLED, by gRPC itself")
HEADER_BYTES = Limit(
    "headers of a call",
    16 * KIB,
    "bytes",
    "INVALID_ARGUMENT, REQUEST_TOO_LARGE; an unauthenticated connection is cut, and past 256 KiB any connection",
)
ABSURD = 256 * KIB
"""Bytes of headers that no proxy passes by default."""
SECONDS_TO_SHAKE_HANDS = Limit("time to open a connection, TLS included", 10, "seconds", "closed")
SECONDS_IDLE = Limit("idle time of a connection", 900, "seconds", "closed in order (GOAWAY)")
SECONDS_OF_AGE = Limit("age of a connection", 3_600, "seconds", "closed in order (GOAWAY); calls in flight have 300 s")
SECONDS_OF_GRACE = 300
PINGS = Limit("pings whose answers a peer has not read", 10_000, "pings", "gRPC itself stops reading from the peer")

LIMITS: tuple[Limit, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Limit))
"""The limits without a lane or a crowd, in the order of the page."""

VERIFY_CROWD = CrowdLimit("Verify", 4_000, 1_000)
BATCH_CROWD = CrowdLimit("BatchVerify", 256, 64)
CALL_CROWD = CrowdLimit("other methods", 1_024, 128)
STOP_CROWD = CrowdLimit("Revoke and SetActive", 1_024, 128)
"""Separate, so that other calls can never prevent stopping a key."""
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
