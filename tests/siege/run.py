"""One attack on one server of its own: before, during and after it, and then SIGTERM in the middle of it."""

import asyncio
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.e2e.service import Service
from tests.histories.scene import Postgresql
from tests.siege.attacks import BY_NAME
from tests.siege.honest import PACE, ROLES, Call, Crew, Met, Place
from tests.siege.scene import ATTACKERS_KEYS, BEFORE, FLOOD, TENANT, Attack, Held, Scene, Tally

GRACE = 5.0
"""Seconds of --shutdown-grace."""
ENDING = GRACE + 1.0
"""Seconds in which SIGTERM must end the server."""
MOST_MEMORY = 512 << 20
GROWTH = 1.2
"""By so much of the memory at the start the memory at the end may be larger."""
TIMES = 3.0
"""So many times its p99 of before may Verify's p99 be, beside an attack without a key …"""
NOISE = 0.02
"""… but p99s under so many seconds say nothing: that is the scheduler of a machine with few cores."""
WARM_UP = 1.0
PHASES = ("before", "during", "after")

WARM, READABLE = 20, 5
"""So many keys are verified all the time, and read."""
LONGEST = 45.0
"""Seconds that a run takes at the most, beyond what the settings add."""

_VERIFYING = "tumbler:keys:verify"
SCOPES: Mapping[str, str] = {
    "Verify": _VERIFYING,
    "unseen": _VERIFYING,
    "Revoke": "tumbler:keys:revoke",
    "Get": "tumbler:keys:read",
    "new Watch": _VERIFYING,
}
"""The scope of each honest caller's key."""

_SEED = """
import pathlib, sys, tumbler_server
sys.path.insert(0, str(pathlib.Path(tumbler_server.__file__).parents[2]))
from benchmarks import seed
seed.add_digested(sys.argv[1], pathlib.Path(sys.argv[2]), seed.texts(int(sys.argv[3])))
"""
"""Fills a database by the attacked server's own checkout."""

VERSIONS = """
import json, platform, sqlite3, grpc, bcrypt, google.protobuf
print(json.dumps({"Python": platform.python_version(), "grpcio": grpc.__version__,
  "protobuf": google.protobuf.__version__, "bcrypt": bcrypt.__version__}))
"""


@dataclass(frozen=True)
class Settings:
    """How a siege is run. ``seconds`` is an attack's; ``rest`` is each of before and after, ``pause`` until the end."""

    seconds: float = 10.0
    rest: float = 5.0
    pause: float = 3.0
    database: str = "sqlite"
    workers: int = 1
    python: str = Service.python
    full: bool = False


@dataclass
class Outcome:
    """What an attack did to a server, and to those who called it."""

    attack: str
    what: str
    calls: dict[str, dict[str, list[Call]]] = field(default_factory=dict)
    """By phase, then by role."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes at the start, at the peak and at the end."""
    ended: float | None = None
    """Seconds from SIGTERM to the end; None where it had to be killed."""
    counts: dict[str, int] = field(default_factory=dict)
    busy: float = 0.0
    """The share of a core that the attacker took: near 1, it could not have done more."""
    late: float = 0.0
    """p99 of how late the honest callers' own processes were, in seconds."""
    problems: list[str] = field(default_factory=list)

    def quantile(self, phase: str, role: str, share: float) -> float | None:
        """Return a quantile of how long calls of a role took, in seconds; None where there were none."""
        took = sorted(call.took for call in self.calls.get(phase, {}).get(role, ()))
        return took[min(int(len(took) * share), len(took) - 1)] if took else None

    def failures(self, phase: str, roles: Sequence[str] = ROLES) -> dict[str, int]:
        """Return how many calls of each role failed, of those that had failures."""
        failed = {
            role: sum(bool(call.failure) for call in calls)
            for role, calls in self.calls.get(phase, {}).items()
            if role in roles
        }
        return {role: number for role, number in failed.items() if number}


class Ground:
    """Installations to attack: each founded once, with everybody's keys, and copied for each attack."""

    def __init__(self, folder: Path, settings: Settings, postgresql: Postgresql | None = None) -> None:
        self.folder, self._settings, self._postgresql = folder, settings, postgresql
        self._ready: dict[int, tuple[Service, Place, Scene]] = {}

    def begin(self, attack: Attack, folder: Path) -> tuple[Service, Place, Scene]:
        """Start a server on a copy, in an empty folder."""
        first, place, scene = self._ready.setdefault(attack.cost, self._ready.get(attack.cost) or self._found(attack))
        url = ""
        if self._postgresql:
            template = f"siege-ready-{attack.cost}"
            self._postgresql.run(f'CREATE DATABASE "siege-{attack.name}" TEMPLATE "{template}"')
            url = first.database_url.replace(f"/{template}?", f"/siege-{attack.name}?")
        shutil.copytree(first.data_dir, folder / "data")
        service = self._service(folder / "data", url, self._flags(attack, folder), first.key)
        if attack.keys:
            arguments = [service.database_url, str(service.pepper_file)]
            arguments.append(str(attack.keys * (5 if self._settings.full else 1)))
            subprocess.run([service.python, "-c", _SEED, *arguments], check=True, capture_output=True, timeout=300)
        if attack.new_pepper:  # of another installation: no digest counts any more
            shutil.copyfile(self._service(folder / "other").init().pepper_file, service.pepper_file)
        try:
            service.start()
        except BaseException:
            kill(service)
            raise
        ca = (folder / "tls.pem").read_bytes() if attack.tls else None
        patience = 5.0 if attack.held.slowest else 2.0
        place = replace(place, target=service.target, ca=ca, patience=patience)
        return service, place, replace(scene, target=service.target, ca=ca, database=service.database_url)

    def _service(self, data_dir: Path, url: str = "", options: Sequence[str] = (), operator: str = "") -> Service:
        service = Service(data_dir, url, options, operator)
        service.python = self._settings.python
        return service

    def _found(self, attack: Attack) -> tuple[Service, Place, Scene]:
        """Found an installation, and make everybody's keys, enough for the longest attack."""
        name = f"siege-ready-{attack.cost}"
        url = self._postgresql.new_database(name) if self._postgresql else ""
        service = self._service(self.folder / name, url, ["--bcrypt-cost", str(attack.cost)]).init().start()
        try:
            return service, *self._make_keys(service)
        finally:
            service.stop()

    def _make_keys(self, service: Service) -> tuple[Place, Scene]:
        def some(project: str, number: float, *scopes: str) -> list[Any]:
            with ThreadPoolExecutor(8) as pool:
                make = partial(service.create, project_id=project, scopes=scopes, name="honest")
                return [made.result() for made in [pool.submit(make) for _ in range(int(number))]]

        def caller(project: str, scope: str) -> str:
            return str(some(project, 1, scope)[0].key)

        keys = {role: caller(f"honest-{role.split()[-1].lower()}", scope) for role, scope in SCOPES.items()}
        keys |= {"List": service.key, "denied": caller("honest-revoke", _VERIFYING)}
        keys["watch"] = keys["denied"]
        span = LONGEST + 3 * self._settings.rest + self._settings.seconds
        warm = [made.key for made in some("honest-verify", WARM)]
        unseen = [made.key for made in some("honest-unseen", span * PACE["unseen"])]
        doomed = [(made.api_key.id, made.key) for made in some("honest-revoke", span * PACE["Revoke"])]
        readable = [made.api_key.id for made in some("honest-get", READABLE)]
        mine = {name: caller(TENANT, *scopes) for name, scopes in ATTACKERS_KEYS.items()}
        postmaster = self._postgresql.pid if self._postgresql else 0
        scene = Scene("", mine, warm[0], self._settings.seconds, self._settings.full, postmaster=postmaster)
        return Place("", None, keys, warm, unseen, doomed, readable), scene

    def _flags(self, attack: Attack, folder: Path) -> list[str]:
        flags = ["--shutdown-grace", f"{GRACE:.0f}s", "--bcrypt-cost", str(attack.cost), *attack.options]
        if self._settings.workers > 1:
            flags += ["--workers", str(self._settings.workers)]
        if attack.tls:
            new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "tls.key")
            names = ("-subj", "/CN=siege", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
            command = ["openssl", "req", "-x509", *new_key, *names, "-out", "tls.pem", "-days", "2"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            flags += ["--tls-cert", str(folder / "tls.pem"), "--tls-key", str(folder / "tls.key")]
        return flags


def besiege(attack: Attack, settings: Settings, crew: Crew, ground: Ground, yardstick: float = 0.0) -> Outcome:
    """Run one attack and judge what happened. ``yardstick`` is Verify's p99 beside as many no-op calls, in seconds."""
    outcome = Outcome(attack.name, attack.what)
    seconds = max(settings.seconds, attack.seconds_full if settings.full else attack.seconds)
    attacker = _Attacker(attack.name)
    service = None
    with TemporaryDirectory(prefix="attack-", dir=ground.folder) as folder:
        try:
            service, place, scene = ground.begin(attack, Path(folder))
            with _memory(service) as sizes:
                _phases(attack, settings, seconds, crew, attacker, place, scene, sizes, outcome)
                outcome.ended = _sigterm(service, attacker, scene)
        except Exception as failure:  # a server that hung, or has ended: the siege goes on
            outcome.problems.append(f"the run broke off: {type(failure).__name__}: {str(failure)[:300]}")
        finally:
            attacker.kill()
            if service:
                kill(service)
                service.close()
    _judge(attack.held, outcome, yardstick)
    return outcome


def _phases(
    attack: Attack,
    settings: Settings,
    seconds: float,
    crew: Crew,
    attacker: "_Attacker",
    place: Place,
    scene: Scene,
    sizes: list[int],
    outcome: Outcome,
) -> None:
    crew.begin(place)
    met = None
    try:
        time.sleep(5 * WARM_UP if attack.new_pepper else WARM_UP)  # each key that is warm costs a bcrypt run then
        marks = [time.monotonic()]
        outcome.memory["start"] = sizes[-1]
        time.sleep(settings.rest)
        outcome.memory["start"] = max(outcome.memory["start"], sizes[-1])
        marks.append(time.monotonic())
        attacker.begin(scene)
        attacker.wait(seconds)
        tally, outcome.busy = attacker.end()
        marks.append(time.monotonic())
        time.sleep(settings.rest + attack.held.recovery)
        marks.append(time.monotonic())
        outcome.counts = dict(tally.counts)
        outcome.problems += tally.problems
    finally:
        met = crew.end()
    time.sleep(settings.pause)
    outcome.memory |= {"end": sizes[-1], "peak": max(sizes)}
    outcome.late = statistics.quantiles(met.late, n=100)[-1] if len(met.late) > 1 else 0.0
    _sort(met, marks, attack.held.recovery, outcome)


def _sort(met: Met, marks: Sequence[float], recovery: float, outcome: Outcome) -> None:
    """Sort what the honest callers met with into the phases. A call belongs to the attack that it overlaps."""
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
    """Give how long after its Revoke's answer each change was heard."""
    for key_id, revoked in met.revoked.items():
        if revoked < began:
            continue  # perhaps nobody listened yet
        heard = met.heard.get(key_id)
        if heard is not None:
            yield Call("change", revoked, max(0.0, heard - revoked), "")
        elif revoked < ended - 2:
            yield Call("change", revoked, ended - revoked, "a change was not heard")


def _sigterm(service: Service, attacker: "_Attacker", scene: Scene) -> float | None:
    """Attack once more, send SIGTERM in the middle of it, and return after how many seconds the server ended."""
    assert service.process is not None
    if service.process.poll() is not None:
        raise AssertionError(f"the server ended by itself: {service.stderr[-300:]}")
    attacker.begin(scene)
    time.sleep(1.5)
    began = time.monotonic()
    service.process.terminate()
    try:
        service.process.wait(ENDING + 2)
    except subprocess.TimeoutExpired:
        return None
    return time.monotonic() - began


def kill(service: Service) -> None:
    """End all of a server's processes at once."""
    if service.process is None or service.process.poll() is not None:
        return
    first = psutil.Process(service.process.pid)
    for process in (*first.children(recursive=True), first):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    service.process.wait()


@contextmanager
def _memory(service: Service) -> Iterator[list[int]]:
    """Note the server's memory five times a second: of all its processes but the scheduler."""
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


class _Attacker:
    """A process that attacks when it is told to, and can be told so several times."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_attack, args=(name, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, scene: Scene) -> None:
        """Begin to attack."""
        self._pipe.send(scene)

    def wait(self, seconds: float) -> None:
        """Let it go on for so long."""
        time.sleep(seconds)

    def end(self) -> tuple[Tally, float]:
        """Stop attacking; return what was done, and the share of a core that it took."""
        self._pipe.send(None)
        if not self._pipe.poll(10):
            raise AssertionError("the attacker does not end")
        answer: tuple[Tally, float] = self._pipe.recv()
        return answer

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _attack(name: str, pipe: Connection) -> None:
    os.nice(5)
    while True:
        scene = pipe.recv()
        began, used = time.monotonic(), time.process_time()
        tally = asyncio.run(_until_told(name, scene, pipe))
        pipe.send((tally, (time.process_time() - used) / (time.monotonic() - began)))


async def _until_told(name: str, scene: Scene, pipe: Connection) -> Tally:
    tally = Tally()
    attacking = asyncio.ensure_future(BY_NAME[name].run(scene, tally))
    while not pipe.poll():
        await asyncio.sleep(0.05)
    pipe.recv()
    attacking.cancel()
    (ended,) = await asyncio.gather(attacking, return_exceptions=True)
    if isinstance(ended, Exception):
        tally.problems.append(f"the attack broke off: {type(ended).__name__}: {ended}")
    if not tally.counts:
        tally.problems.append("the attack did not happen")
    return tally


def _judge(held: Held, outcome: Outcome, yardstick: float) -> None:
    """Note what was not held."""
    problems = outcome.problems
    if not outcome.calls:
        return
    for phase in PHASES:
        roles = [role for role in ROLES if phase != "during" or role not in held.excused]
        if failed := outcome.failures(phase, roles):
            told = ", ".join(f"{number} {role}" for role, number in failed.items())
            examples = {call.failure for role in failed for call in outcome.calls[phase][role] if call.failure}
            problems.append(f"failed {phase}: {told} ({'; '.join(sorted(examples)[:3])})")
    during = outcome.quantile("during", "Verify", 0.99) or 0.0
    if held.verify:
        most = TIMES * max(outcome.quantile("before", "Verify", 0.99) or 0.0, yardstick if held.verify == FLOOD else 0)
        if during > max(most, NOISE):
            compared = "before" if held.verify == BEFORE else "before, and of beside as many no-op calls"
            problems.append(f"Verify's p99 is {during * 1e3:.0f} ms, more than {TIMES:.0f} times that of {compared}")
    revoke = outcome.quantile("during", "Revoke", 0.99) or 0.0
    if held.revoke is not None and revoke > held.revoke:
        problems.append(f"Revoke's p99 is {revoke * 1e3:.0f} ms")
    for role, most in held.slowest.items():
        slowest = max((call.took for call in outcome.calls["during"][role]), default=0.0)
        if slowest > most:
            problems.append(f"an answer of {role} took {slowest:.1f} s")
    start, peak, end = (outcome.memory.get(name, 0) for name in ("start", "peak", "end"))
    if peak > MOST_MEMORY:
        problems.append(f"memory reached {peak >> 20} MiB")
    if end > GROWTH * start:
        problems.append(f"memory ended at {end >> 20} MiB, and began at {start >> 20}")
    if outcome.ended is None or outcome.ended > ENDING:
        problems.append(f"SIGTERM did not end the server within {ENDING:.0f} s")


def versions(python: str) -> Mapping[str, str]:
    """Return what a server is made of."""
    told = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True, timeout=60)
    return dict(json.loads(told.stdout))
