"""A Watch stream as the hub sees it: who receives it, where in the log it stands, and in which phase it is."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from tumbler_server.secrets.opaque_tokens import Point
from tumbler_server.streams.feed import Notice


class Phase(Enum):
    """Where a stream is in its life."""

    OPENING = auto()
    """Its first position is not known yet."""
    CATCHING_UP = auto()
    """It has a position, and has not been up to date since its start or its last reset."""
    LIVE = auto()
    """It has been up to date."""
    ENDING = auto()
    """The hub ends it, and it waits for the turn in which its task is cancelled."""
    ENDED = auto()
    """Its task was cancelled."""


_NEXT = {
    Phase.OPENING: {Phase.CATCHING_UP, Phase.ENDING},
    Phase.CATCHING_UP: {Phase.LIVE, Phase.ENDING},
    Phase.LIVE: {Phase.CATCHING_UP, Phase.ENDING},
    Phase.ENDING: {Phase.ENDED},
    Phase.ENDED: set[Phase](),
}


class Place(Enum):
    """Where a stream is in the queue for turns."""

    RESTING = auto()
    QUEUED = auto()
    """It waits for its turn, or has it."""
    QUEUED_AGAIN = auto()
    """Meanwhile there was another reason for a turn: another one follows."""


class Subscriber(Protocol):
    """The receiver of a stream. Only ``read`` may block."""

    tenant: str
    """The project of the subscriber's key. The stream counts against its share."""

    key_id: str
    """The subscriber's key."""

    def render(self, notice: Notice) -> bytes:
        """Return the serialized notice for this subscriber and all others that share it."""

    def date(self, age: int) -> bytes:
        """Return the bytes to append to a heartbeat: how long the stream had been open when its promise was true."""

    def write(self, message: bytes, /) -> Awaitable[None]:
        """Write a message. Return when the next one can be written."""

    def read(self) -> Any:
        """Return the subscriber's key, read from the database. Called on another thread, for all streams of the key."""

    def judge(self, read: Any = None) -> int:
        """Return the time until which the subscriber may listen. ``read`` is a new result of ``read()``, if any.

        Raises the error to end the stream with if the subscriber may not listen.
        """


@dataclass(eq=False, slots=True)
class Stream:
    """A subscriber and its position in the log. It receives the events of one project, or of all (``""``)."""

    subscriber: Subscriber
    project_id: str
    tenant: str
    key_id: str
    interval: int
    opened: int
    until: int
    start: Point | None
    task: "asyncio.Task[Any] | None"
    phase: Phase = Phase.OPENING
    place: Place = Place.QUEUED
    cursor: int = 0
    resets: int = 0
    judge: bool = True
    """Whether the key has changed and must be judged again."""
    beat: bool = True
    """Whether a heartbeat is due. The first one is due as soon as the stream is up to date."""
    turn: "asyncio.Future[None] | None" = None
    waited: int = 0
    failure: Exception | None = None
    """Why the hub ends the stream."""

    def become(self, phase: Phase) -> bool:
        """Enter a phase if it may follow the present one. Return whether it has been entered now."""
        follows = phase in _NEXT[self.phase]
        if follows:
            self.phase = phase
        return follows
