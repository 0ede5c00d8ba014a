"""One attack on a server of its own: the time before, during and after it, and then SIGTERM in the middle of it."""

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import psutil

from tests.e2e.service import Client, Service, eventually
from tests.harness import Refused
from tests.siege import accidents
from tests.siege.attacker import Attacker
from tests.siege.ground import ENDING, Ground, Settings, kill
from tests.siege.honest import CONNECTIONS, ROLES, Call, Crew, Met, Place
from tests.siege.outcome import GROWTH, PHASES, Outcome, judge
from tests.siege.scene import Attack, Scene

WARM_UP = 1.0
"""Most seconds for the honest callers to connect, and for the server to cache their keys."""
SETTLING = 12.0
"""Most seconds for the server to release memory: peers that are often refused get their errors up to 10 s late."""
STRUCK = 1.5
"""Most seconds of an attack before SIGTERM."""


def besiege(attack: Attack, settings: Settings, crew: Crew, ground: Ground, yardstick: float = 0.0) -> Outcome:
    """Run one attack and judge its outcome. ``yardstick`` is Verify's p99 during a flood of no-op calls, in seconds.

    Failures before the attack are caused by the machine, so the run is then repeated once.
    """
    outcome = _run(attack, settings, crew, ground)
    if not outcome.calls or outcome.failures("before"):
        outcome = _run(attack, settings, crew, ground)
    judge(attack.held, outcome, yardstick, settings.noise)
    return outcome


def _run(attack: Attack, settings: Settings, crew: Crew, ground: Ground) -> Outcome:
    outcome = Outcome(attack.name, attack.what)
    seconds = max(settings.seconds, attack.seconds_full if settings.full else attack.seconds)
    attacker = Attacker(attack.name)
    service = None
    with TemporaryDirectory(prefix="attack-", dir=ground.folder) as folder:
        try:
            service, place, scene = ground.begin(attack, Path(folder))
            with _memory(service) as sizes:
                _phases(attack, settings, seconds, crew, attacker, place, scene, sizes, outcome)
                _settle(settings, sizes, outcome, "end")
                if outcome.memory["end"] > GROWTH * outcome.memory["start"]:
                    attacker.begin(scene)
                    time.sleep(seconds)
                    attacker.end(attack.finishes)
                    _settle(settings, sizes, outcome, "again")
                outcome.ended = _sigterm(service, attacker, scene, min(STRUCK, settings.rest))
        except Exception as failure:  # the server hung or ended; the siege goes on
            outcome.problems.append(f"the run broke off: {type(failure).__name__}: {str(failure)[:300]}")
        finally:
            attacker.kill()
            if service and scene.postmaster:
                accidents.wake(scene.postmaster)
            if service:
                kill(service)
                service.close()
    return outcome


def _phases(
    attack: Attack,
    settings: Settings,
    seconds: float,
    crew: Crew,
    attacker: Attacker,
    place: Place,
    scene: Scene,
    sizes: list[int],
    outcome: Outcome,
) -> None:
    if attack.new_pepper:
        _prove(place)
    crew.begin(place)
    met = None
    try:
        time.sleep(min(WARM_UP, settings.rest))
        marks = [time.monotonic()]
        outcome.memory["start"] = sizes[-1]
        time.sleep(settings.rest)
        outcome.memory["start"] = max(outcome.memory["start"], sizes[-1])
        marks.append(time.monotonic())
        attacker.begin(scene)
        time.sleep(seconds)
        tally, outcome.busy = attacker.end(attack.finishes)
        marks.append(time.monotonic())
        time.sleep(settings.rest + attack.held.recovery)
        marks.append(time.monotonic())
        outcome.counts = dict(tally.counts)
        outcome.problems += tally.problems
    finally:
        met = crew.end()
    outcome.late = statistics.quantiles(met.late, n=100)[-1] if len(met.late) > 1 else 0.0
    _sort(met, marks, attack.held.recovery, outcome)


def _settle(settings: Settings, sizes: list[int], outcome: Outcome, when: str) -> None:
    """Record the server's memory once it is back near its start, or its time is over."""
    time.sleep(settings.pause)
    until = time.monotonic() + (SETTLING if settings.pause else 0)
    while sizes[-1] > GROWTH * outcome.memory["start"] and time.monotonic() < until:
        time.sleep(0.2)
    outcome.memory |= {when: sizes[-1], "peak": max(sizes)}


def _prove(place: Place) -> None:
    """Make every worker cache the honest callers' own keys and the warm ones. Each costs a bcrypt run."""

    def present(_: int) -> None:
        client = Client(place.target, place.keys["Verify"])
        for text in (*place.warm, *place.keys.values()):
            eventually(lambda text=text: _known(client, text))
        client.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(present, range(CONNECTIONS)))


def _known(client: Client, text: str) -> bool:
    try:
        client.verdict(text)
    except Refused as refused:
        return refused.code is not grpc.StatusCode.RESOURCE_EXHAUSTED
    return True


def _sort(met: Met, marks: Sequence[float], recovery: float, outcome: Outcome) -> None:
    """Sort the honest calls into phases. A call that overlaps the attack belongs to it."""
    began, struck, over, ended = marks
    calls = [*met.calls, *_changes(met, began, ended)]
    outcome.calls = {phase: {role: [] for role in ROLES} for phase in PHASES}
    for call in calls:
        done = call.began + call.took
        if call.began >= ended or done < began:
            continue
        if done < struck:
            phase = "before"
        elif call.began < over + recovery:
            phase = "during"
        else:
            phase = "after"
        outcome.calls[phase][call.role].append(call)


def _changes(met: Met, began: float, ended: float) -> Iterator[Call]:
    """Yield the delay from each Revoke's response to its event."""
    for key_id, revoked in met.revoked.items():
        if revoked < began:
            continue  # the stream may not have been open yet
        heard = met.heard.get(key_id)
        if heard is not None:
            yield Call("change", revoked, max(0.0, heard - revoked), "")
        elif revoked < ended - 2:
            yield Call("change", revoked, ended - revoked, "a change was not heard")


def _sigterm(service: Service, attacker: Attacker, scene: Scene, struck: float) -> float | None:
    """Attack again, send SIGTERM in the middle of it, and return the seconds until the server ended, or None."""
    assert service.process is not None
    if service.process.poll() is not None:
        raise AssertionError(f"the server ended by itself: {service.stderr[-300:]}")
    attacker.begin(scene)
    time.sleep(struck)
    began = time.monotonic()
    service.process.terminate()
    try:
        service.process.wait(ENDING + 2)
    except subprocess.TimeoutExpired:
        return None
    return time.monotonic() - began


@contextmanager
def _memory(service: Service) -> Iterator[list[int]]:
    """Record the memory of all of the server's processes except the scheduler, five times a second."""
    assert service.process is not None
    first = psutil.Process(service.process.pid)
    over = threading.Event()

    def size() -> int:
        total = 0
        for process in (first, *first.children(recursive=True)):
            try:
                if "tumbler_server.scheduler" not in " ".join(process.cmdline()):
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    sizes = [size()]

    def look() -> None:
        while not over.wait(0.2):
            try:
                sizes.append(size() or sizes[-1])
            except psutil.NoSuchProcess:
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield sizes
    finally:
        over.set()
        looking.join()
