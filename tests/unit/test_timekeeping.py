"""The installation's time while clocks are wrong."""

import pytest
import structlog

from tests.domain import Domain
from tests.harness import FrozenClock
from tests.unit.test_log import append, change
from tumbler_server.clock import DAY, HOUR, MINUTE
from tumbler_server.defaults import SCHEDULER_LEASE
from tumbler_server.events.log import EventType
from tumbler_server.events.retention import Retention
from tumbler_server.scheduler import timekeeping
from tumbler_server.scheduler.timekeeping import LEAP, LOOK, TICK, TRIAL, Timekeeper, Timekeeping, read_mark
from tumbler_server.store.database import Store
from tumbler_server.store.lease import Lease

AHEAD, BEHIND = 500 * DAY, -365 * DAY


class Machine:
    """A machine with a server, a wall clock that may jump, and a monotonic clock. It acts if the lease is free."""

    def __init__(self, store: Store, clock: FrozenClock, name: str = "test") -> None:
        self.store = store
        self.clock = clock
        self.monotonic = FrozenClock(0)
        self.start(name)

    def start(self, name: str = "test") -> None:
        """Start as a new process."""
        self.lease = Lease(self.store, name, monotonic=self.monotonic)
        self.keeping = Timekeeping(self.store, self.clock, self.monotonic)
        self.keeper = Timekeeper(self.store, self.clock, self.monotonic)

    def act(self) -> None:
        """Do the work that is due, if this machine holds the lease."""
        if self.lease.keep():
            self.keeping.work(self.lease)

    def run(self, span: int, pace: int = 1) -> None:
        """Let time pass while the server runs; its wall clock runs ``pace`` times as fast."""
        for _ in range(span // TICK):
            self.monotonic.advance(TICK)
            self.clock.advance(TICK * pace)
            self.act()

    def stand(self, span: int) -> None:
        """Let time pass while nothing runs."""
        self.monotonic.advance(span)
        self.clock.advance(span)

    def now(self) -> int:
        """Return the installation's time, as seen by a process that has just read it."""
        self.monotonic.advance(LOOK)
        self.clock.advance(LOOK)
        return self.keeper.now()


@pytest.fixture
def machine(store: Store, clock: FrozenClock) -> Machine:
    """Return a machine whose server has run for a while with a correct clock."""
    append(store, change(time=clock.now), change(time=clock.now))
    machine = Machine(store, clock)
    machine.act()
    machine.run(10 * MINUTE)
    return machine


@pytest.mark.parametrize(
    ("leap", "follows"),
    [
        (0, True),
        (HOUR, True),
        (-HOUR, True),
        (LEAP, True),
        (-LEAP, True),
        (LEAP + 1, False),
        (-LEAP - 1, False),
        (AHEAD, False),
        (BEHIND, False),
    ],
)
def test_a_leap_of_more_than_a_day_is_not_followed(machine: Machine, leap: int, follows: bool) -> None:
    """A clock within a day of the known time is trusted; otherwise time continues as if it had not jumped.

    This holds for the process that acts, for one that only reads the time, and for one that starts later.
    """
    right = machine.clock.now
    machine.clock.advance(leap)
    assert machine.keeper.now() == right + leap * follows
    machine.run(5 * MINUTE)
    right += 5 * MINUTE + leap * follows
    assert machine.keeper.now() == right
    assert Timekeeper(machine.store, machine.clock, machine.monotonic).now() == right
    assert read_mark(machine.store).time == right


def test_a_first_clock_that_was_ahead_removes_nothing(store: Store, clock: FrozenClock) -> None:
    """Where the first server's clock was ahead and is put right, what is new then is not removed as if it were old."""
    clock.advance(AHEAD)
    timekeeping.begin(store, clock())
    machine = Machine(store, clock)
    machine.act()
    machine.run(10 * MINUTE)
    clock.advance(-AHEAD)
    for number in range(5):
        append(store, change(number, time=clock.now))
        machine.run(5 * MINUTE)
    assert read_mark(store).time - clock.now == AHEAD
    assert Retention(store, machine.keeper.earliest, 400 * DAY).remove() == 0
    timekeeping.trust(store, clock.now)
    assert Retention(store, machine.keeper.earliest, 400 * DAY).remove() == 0


@pytest.mark.parametrize("leap", [AHEAD, BEHIND])
def test_a_clock_that_stands_by_it_is_believed_after_a_day(machine: Machine, leap: int) -> None:
    """A clock that keeps its deviation for a day of running is trusted, no sooner, and this is logged."""
    right = machine.clock.now
    machine.clock.advance(leap)
    with structlog.testing.capture_logs() as logged:
        machine.act()
        machine.run(TRIAL - TICK)
        assert machine.now() == pytest.approx(right + TRIAL, abs=2 * TICK)
        machine.run(2 * TICK)
        assert machine.now() == machine.clock.now
    told = [entry for entry in logged if "is now trusted" in entry["event"]]
    assert len(told) == 1
    still = [entry["hours_until_believed"] for entry in logged if "hours_until_believed" in entry]
    assert still == sorted(still, reverse=True)
    assert 20 < len(still) < 25, "once an hour"


def test_a_trial_goes_on_after_a_restart(machine: Machine) -> None:
    """The day of trial counts running time over several processes: a restart does not reset it."""
    machine.clock.advance(AHEAD)
    for _ in range(4):
        machine.run(TRIAL // 4)
        machine.start()
        machine.act()
        machine.stand(3 * MINUTE)
    machine.run(10 * TICK)
    assert machine.now() == machine.clock.now


def test_the_time_in_which_nothing_ran_is_no_trial(machine: Machine) -> None:
    """Time during which nothing ran, as while the machine was off or asleep, does not count as trial."""
    machine.clock.advance(AHEAD)
    machine.run(10 * MINUTE)
    machine.stand(3 * DAY)
    machine.run(10 * MINUTE)
    assert machine.now() < machine.clock.now - 400 * DAY


def test_a_clock_that_changes_its_mind_is_on_trial_anew(machine: Machine) -> None:
    """Each jump of more than an hour starts a new day of trial."""
    machine.clock.advance(AHEAD)
    for _ in range(3):
        machine.run(TRIAL // 2)
        machine.clock.advance(2 * HOUR)
    assert machine.now() < machine.clock.now - 400 * DAY


def test_a_clock_that_was_set_right_leaves_nothing_behind(machine: Machine) -> None:
    """A clock that was wrong for less than a day, and is then correct, has no lasting effect."""
    machine.clock.advance(AHEAD)
    with structlog.testing.capture_logs() as logged:
        machine.run(23 * HOUR)
        machine.now()
        machine.clock.advance(-AHEAD)
        machine.run(10 * MINUTE)
        assert machine.now() == machine.clock.now
    assert read_mark(machine.store) == (machine.clock.now - LOOK, 0, 0)
    assert [entry["event"].partition(":")[0] for entry in logged if "hours_until_believed" not in entry] == [
        "this machine's clock is 500.0 days ahead of the installation's last known time",
        "this machine's clock agrees with the installation again",
    ]


def test_a_clock_that_is_too_fast_gets_a_day_ahead_at_the_most(machine: Machine) -> None:
    """A clock that is too fast gets at most a day ahead: small steps lead no further than one trusted jump."""
    began = machine.monotonic.now
    right = machine.clock.now
    machine.run(4 * HOUR, pace=60)
    assert machine.now() <= right + (machine.monotonic.now - began) + LEAP


def test_an_operator_who_knows_is_believed_at_once(machine: Machine) -> None:
    """After ``trust``, which any process may call, all processes use the clock within half a minute."""
    machine.clock.advance(AHEAD)
    machine.run(10 * MINUTE)
    timekeeping.trust(machine.store, machine.clock.now)
    assert machine.now() == machine.clock.now
    machine.run(10 * MINUTE)
    assert machine.now() == machine.clock.now


@pytest.mark.parametrize("trusted", [False, True])
def test_events_dated_by_a_clock_that_was_behind_are_kept(machine: Machine, trusted: bool) -> None:
    """When the time is set forward, by an operator or a day of running, no event of minutes ago is removed for it."""
    append(machine.store, *(change(number, time=machine.clock.now) for number in range(5)))
    machine.clock.advance(AHEAD)
    machine.run(10 * MINUTE)
    if trusted:
        timekeeping.trust(machine.store, machine.clock.now)
    else:
        machine.run(TRIAL + TICK)
    assert machine.now() == machine.clock.now
    append(machine.store, *(change(number, time=machine.clock.now) for number in range(2)))
    retention = Retention(machine.store, machine.now, 400 * DAY)
    assert retention.remove() == 0
    for days, removes in ((395, False), (10, True)):
        for _ in range(days):
            machine.stand(DAY)
            machine.act()
        assert (retention.remove() > 0) is removes


def test_a_leap_back_undoes_a_leap_forward(machine: Machine) -> None:
    """A clock that was trusted by mistake, and then corrected, keeps no event for longer."""
    append(machine.store, change(1, time=machine.clock.now), change(2, time=machine.clock.now))
    timekeeping.trust(machine.store, machine.clock.now + AHEAD)
    timekeeping.trust(machine.store, machine.clock.now)
    machine.clock.advance(DAY // 2)
    retention = Retention(machine.store, machine.clock, DAY // 4)
    assert retention.remove() > 0


def test_an_idle_installation_proceeds(machine: Machine) -> None:
    """After 500 days off, it continues from its known time, and trusts the clock after a day of running."""
    before = machine.clock.now
    machine.stand(AHEAD)
    machine.monotonic.now = 0
    machine.start()
    machine.act()
    assert machine.keeper.now() == before
    machine.run(TRIAL + TICK)
    assert machine.now() == machine.clock.now


@pytest.mark.parametrize("leap", [AHEAD, BEHIND])
def test_a_server_whose_clock_is_wrong_beside_one_that_acts(machine: Machine, leap: int) -> None:
    """A server with a wrong clock uses the acting server's time, and continues from it when that one stops."""
    wrong = Machine(machine.store, FrozenClock(machine.clock.now + leap), "wrong")
    wrong.act()
    for _ in range(30):
        machine.run(TICK)
        wrong.stand(TICK)
        assert wrong.now() == pytest.approx(machine.now(), abs=2 * MINUTE)
    machine.lease.release()
    wrong.monotonic.advance(SCHEDULER_LEASE)
    wrong.run(30 * MINUTE)
    assert wrong.now() == pytest.approx(machine.clock.now + 30 * MINUTE, abs=3 * MINUTE)


def test_before_anybody_has_kept_time(store: Store, clock: FrozenClock) -> None:
    """Before the first mark, the newest event gives the time; in a new log the clock does."""
    assert Timekeeper(store, clock, FrozenClock(0)).now() == clock.now
    append(store, change(time=clock.now - AHEAD))
    assert Timekeeper(store, clock, FrozenClock(0)).now() == clock.now, "there is nothing to lose but the first key's"
    append(store, change(time=clock.now - AHEAD))
    assert Timekeeper(store, clock, FrozenClock(0)).now() == clock.now - AHEAD
    machine = Machine(store, clock)
    machine.act()
    assert machine.keeper.now() == clock.now - AHEAD


@pytest.mark.parametrize(
    ("events", "leap", "enough", "expected"),
    [
        ([], AHEAD, 2, AHEAD),
        ([0], AHEAD, 2, AHEAD),  # the first key's: the clock of the first server is believed, whenever it starts
        ([0], AHEAD, 1, 0),
        ([0, 0], AHEAD, 2, 0),
        ([0, AHEAD], 0, 2, 0),  # a wrong clock has written the newest event, and the right one comes
        ([0, BEHIND], 0, 2, BEHIND),  # too early removes nothing
        ([0, 0], BEHIND, 2, BEHIND),
    ],
)
@pytest.mark.parametrize("recorded", [0, AHEAD])
def test_a_clock_that_comes_first_does_not_testify_for_itself(
    store: Store, clock: FrozenClock, events: list[int], leap: int, enough: int, expected: int, recorded: int
) -> None:
    """Where no mark was ever set, it is the newest event's time, or the clock's if that is earlier.

    What `migrate` writes does not count as such an event. A mark that is set stays.
    """
    now = clock.now
    for time in events:
        append(store, change(time=now + time))
    if recorded and events:
        append(store, change(time=now + recorded, type=EventType.RECORDED))
    if len(events) == 1 and recorded and enough == 2:
        expected = 0  # two events: it is not the first key's alone
    timekeeping.begin(store, now + leap, enough)
    assert read_mark(store).time == now + expected
    timekeeping.begin(store, now + 7 * DAY)
    assert read_mark(store).time == now + expected


@pytest.mark.parametrize("leap", [AHEAD, BEHIND])
def test_instants_are_translated(machine: Machine, domain: Domain, leap: int) -> None:
    """An instant of a wrong clock is translated to the installation's time, and never to the future."""
    right = machine.clock.now
    machine.clock.advance(leap)
    assert machine.keeper.translate(machine.clock.now - HOUR) == right - HOUR
    assert machine.keeper.translate(machine.clock.now + HOUR) == right
    machine.clock.advance(-leap)
    assert machine.keeper.translate(right - HOUR) == right - HOUR
    assert machine.keeper.translate(right + AHEAD) == right
