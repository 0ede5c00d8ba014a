"""The time that an installation goes by: its servers' clocks, as long as they do not leap.

A clock can be wrong by years, for the seconds until the network's time comes, or until somebody sees it. What is
removed for its age, or announced because its time has come, cannot be taken back: neither is done on the word of a
clock alone.

The database keeps a *mark*, the newest time that the installation knows. The server that acts moves it, as fast as time
passes by the monotonic clock. A clock within a day of the mark is believed, and the mark follows it. One that is
further off, ahead or behind, is not: the mark goes on by itself, and is the time that everything here goes by, until
the clock has said the same for a day in which a server ran, or an operator says that it is right (``trust``).

So a clock that is wrong for less than a day moves this time by a day at the most, however wrong it is. Where no server
ran for longer than a day, the right clock is doubted too, and what is due comes a day late, or after ``trust``.

When the mark is set forward by more than a day, the clock may have been behind before, and all events with it. So
retention takes the events until then for younger by as much (``events.retention``): else the first right clock would
remove them all.

Verdicts are not given by this time: a key expires by the clock of the server that is asked.
"""

import threading
from typing import NamedTuple

from tumbler_server import clock as clocks
from tumbler_server import logs
from tumbler_server.clock import DAY, HOUR, MINUTE, SECOND, Clock, rfc3339
from tumbler_server.events.log import EventType
from tumbler_server.store.database import Store, Transaction
from tumbler_server.store.lease import Lease
from tumbler_server.store.models import ClockRow

LEAP = DAY
"""How far a clock may be from the mark and be believed."""

TRIAL = DAY
"""For how long, while a server runs, a clock that is further off has to say the same until it is believed."""

STEADY = HOUR
"""By how much a clock that is on trial may move against the monotonic one and be said to say the same."""

TICK = MINUTE
"""How often the mark is moved."""

LOOK = 30 * SECOND
"""How often a process reads the mark."""

REMIND = HOUR
"""How often the log says that a clock is not believed."""

_SELECT = (
    "SELECT c.time, c.apart, c.waited, h.revision, "
    "COALESCE((SELECT time FROM event ORDER BY revision DESC LIMIT 1), 0) "
    "FROM clock c, log_head h WHERE c.id = 1 AND h.id = 1"
)

# Not those that `migrate` itself writes.
_NEWEST = "SELECT time FROM event WHERE type <> ? ORDER BY revision DESC LIMIT 1"

_LEAPT = (
    "SELECT c.leapt, c.leapt_revision, h.revision, h.anchor_revision "
    "FROM clock c, log_head h WHERE c.id = 1 AND h.id = 1"
)

_log = logs.get_logger(__name__)


class Mark(NamedTuple):
    """What the database knows of the time. ``time`` is 0 where it knows nothing.

    ``apart`` is how far the clock on trial was from the mark as the trial began (0: there is none), and ``waited`` how
    long it has said the same.
    """

    time: int
    apart: int = 0
    waited: int = 0


def believed(reading: int, reckoned: int) -> bool:
    """Say whether a clock's reading is near enough to what the installation reckons."""
    return abs(reading - reckoned) <= LEAP


def words(reading: int, reckoned: int) -> str:
    """Return how far a clock is off, for an operator."""
    return f"{abs(reading - reckoned) / DAY:,.1f} days {'ahead of' if reading > reckoned else 'behind'}"


def read_mark(store: Store) -> Mark:
    """Return the mark. Raises ``StoreUnavailable``."""
    return _mark(store.read(_SELECT)[0])


def begin(store: Store, reading: int, enough: int = 2) -> None:
    """Set the mark where it was never set, from the newest event if there are ``enough``, or from the clock if earlier.

    Whoever writes events calls this first: later, the events of a wrong clock would testify for it. The earlier time is
    taken because by it nothing is removed too soon. The first key's event alone is no reason to doubt a clock: beside
    it there is nothing to lose, and it may be made long before the first server. Raises ``StoreUnavailable``.
    """

    def work(transaction: Transaction) -> None:
        time, _, _, events, _ = transaction.read(_SELECT)[0]
        if not time:
            newest = transaction.read(_NEWEST, (int(EventType.RECORDED),)) if events >= enough else []
            transaction.run(ClockRow.update(time=min([reading, *newest[0]] if newest else [reading])))

    if not store.read("SELECT time FROM clock WHERE id = 1")[0][0]:
        store.write_serialized(work)


def trust(store: Store, reading: int) -> None:
    """Set the mark, since somebody knows that this is the time. Raises ``StoreUnavailable``."""
    store.write_serialized(lambda transaction: _set(transaction, Mark(reading), _mark(transaction.read(_SELECT)[0])))


class Timekeeper:
    """Tells the time that the installation goes by. Safe for use by many threads."""

    def __init__(self, store: Store, clock: Clock, monotonic: Clock = clocks.monotonic, tells: bool = True) -> None:
        """With ``tells`` the log says when the clock begins to be doubted, and when that is over."""
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._tells = tells
        self._known: _Line | None = None
        self._doubts = False
        self._lock = threading.Lock()

    def now(self) -> int:
        """Return the time. Raises ``StoreUnavailable``, since now and then the mark is read."""
        with self._lock:
            return self._now()

    def earliest(self) -> int:
        """Return the time, or this machine's clock if that is behind it. Raises ``StoreUnavailable``.

        What is removed for its age is removed by this: the installation's time is too late where the first server's
        clock was ahead, and until the right one is trusted, all that is new would be old.
        """
        return min(self.now(), self._clock())

    def _now(self) -> int:
        reading = self._clock()
        reckoned = self._reckoned(reading)
        doubts = not believed(reading, reckoned)
        if doubts and not self._doubts:  # the mark may have been moved since it was read
            self._known = None
            reckoned = self._reckoned(reading)
            doubts = not believed(reading, reckoned)
        if doubts != self._doubts:
            self._doubts = doubts
            if self._tells:
                self._tell(reading, reckoned)
        return reckoned if doubts else reading

    def translate(self, instant: int) -> int:
        """Return an instant that this process's clock gave, by the installation's time; it is never in the future."""
        now = self.now()
        return min(instant + now - self._clock(), now)

    def _reckoned(self, reading: int) -> int:
        monotonic = self._monotonic()
        known = self._known
        if known is None or monotonic - known.monotonic >= LOOK:
            known = self._known = _Line(read_mark(self._store).time or reading, monotonic)
        return known.at(monotonic)

    def _tell(self, reading: int, reckoned: int) -> None:
        if self._doubts:
            _log.warning(
                f"this machine's clock is {words(reading, reckoned)} the installation's last known time: until it "
                "is trusted, nothing is removed or announced. Correct it; if it is right: `tumbler-server trust-clock`",
                clock=rfc3339(reading),
                known=rfc3339(reckoned),
            )
        else:
            _log.warning("this machine's clock agrees with the installation again", clock=rfc3339(reading))


class Timekeeping:
    """Moves the mark. A duty of the process that acts."""

    def __init__(self, store: Store, clock: Clock, monotonic: Clock = clocks.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._next = self._moved = self._reminded = monotonic()
        self._line = _Line(0, 0)
        self._written = Mark(-1)

    def work(self, lease: Lease) -> bool:
        """Move the mark where it is time for that; there is never more. Raises ``LeaseLost``, ``StoreUnavailable``."""
        monotonic = self._monotonic()
        if monotonic < self._next:
            return False
        reading = self._clock()

        def move(transaction: Transaction) -> tuple[Mark, _Line]:
            lease.guard(transaction)
            found = _mark(transaction.read(_SELECT)[0])
            mark, line = self._moved_on(found, reading, monotonic)
            _set(transaction, mark, found)
            return mark, line

        before = self._written
        self._written, self._line = self._store.write_serialized(move)
        self._moved, self._next = monotonic, monotonic + TICK
        self._tell(before, reading, monotonic)
        return False

    def _moved_on(self, found: Mark, reading: int, monotonic: int) -> tuple[Mark, "_Line"]:
        line, ran = self._line, min(monotonic - self._moved, 2 * TICK)
        if found.time != self._written.time:  # we have just begun, or somebody else has moved it
            line, ran = _Line(found.time or reading, monotonic), 0
        reckoned = line.at(monotonic)
        if believed(reading, reckoned):
            return Mark(reading), line
        apart = reading - reckoned
        same = found.apart and abs(apart - found.apart) <= STEADY
        waited = found.waited + ran if same else 0
        if waited >= TRIAL:
            return Mark(reading), _Line(reading, monotonic)
        return Mark(reckoned, found.apart if same else apart, waited), line

    def _tell(self, before: Mark, reading: int, monotonic: int) -> None:
        mark = self._written
        if not mark.apart:
            self._reminded = monotonic
            if before.apart and not believed(reading, before.time):
                _log.warning("this machine's clock is now trusted", clock=rfc3339(reading))
        elif monotonic - self._reminded >= REMIND:
            self._reminded = monotonic
            _log.warning(
                f"this machine's clock is still {words(reading, mark.time)} the installation's last known time",
                clock=rfc3339(reading),
                known=rfc3339(mark.time),
                hours_until_believed=round((TRIAL - mark.waited) / HOUR, 1),
            )


class _Line(NamedTuple):
    """A time, and when it was by the monotonic clock: from here it is reckoned how far the mark may go.

    It is not reckoned from the mark's last place: a clock that is too fast could lead it anywhere, by small steps.
    """

    time: int
    monotonic: int

    def at(self, monotonic: int) -> int:
        return self.time + monotonic - self.monotonic


def _mark(row: tuple[int, ...]) -> Mark:
    time, apart, waited, events, newest = row
    # Nobody has set it yet: the newest event says what time it was. Beside the first key's there is nothing to lose.
    return Mark(time or (newest if events > 1 else 0), apart, waited)


def _set(transaction: Transaction, mark: Mark, before: Mark) -> None:
    changed = mark._asdict()
    leap = mark.time - before.time
    if before.time and abs(leap) > LEAP:
        ((leapt, until, newest, removed),) = transaction.read(_LEAPT)
        # Nothing is left of what was before an earlier leap, or it is now off by both. A leap back undoes one forward.
        earlier = leapt if until > removed else 0
        changed |= {"leapt": max(0, earlier + leap), "leapt_revision": newest}
    transaction.run(ClockRow.update(changed).where(ClockRow.id == 1))
