"""Load generators, and what a server does under them.

The measure is calls per second of the server's own CPU time: unlike calls a second it hardly depends on what else the
machine does, and a generator that competes for a core does not eat the result.
"""

import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SERVER_CORE, GENERATOR_CORE = {0}, {1}
"""The server has a core to itself; generators, and PostgreSQL where there is one, have the other."""

GRPC_FRAME = 5
"""Bytes before each gRPC message: a flag and its length."""


class Unfit(Exception):
    """A measurement that measured something else than it should have."""


@dataclass(frozen=True)
class Load:
    """One short run. ``seconds`` and ``cpu`` are seconds, latencies milliseconds; ``cpu`` is that of the server."""

    calls: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def per_cpu_second(self) -> float:
        """Return how many calls a second of the server's CPU time answered."""
        return self.calls / self.cpu

    @property
    def per_second(self) -> float:
        """Return how many calls were answered in a second of the clock."""
        return self.calls / self.seconds


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return how much CPU time processes have used so far, in user and system mode; exact to a microsecond."""
    # Linux makes a process's CPU clock out of its id; see clock_getcpuclockid(3).
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def frame(message: bytes) -> bytes:
    """Return a message as gRPC sends it."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def write_bodies(path: Path, messages: Sequence[bytes]) -> Path:
    """Write requests for ``loadgen``: each after its length."""
    path.write_bytes(b"".join(len(message).to_bytes(4, "big") + message for message in messages))
    return path


@dataclass(frozen=True)
class Answered:
    """What h2load says of a run."""

    calls: int
    succeeded: int
    seconds: float
    data: int


_NUMBERS = {
    "calls": r"^requests: .* (\d+) done,",
    "succeeded": r"^requests: .* (\d+) succeeded,",
    "data": r"^traffic: .*\((\d+)\) data$",
}
_FINISHED = re.compile(r"^finished in ([\d.]+)(us|ms|s|min)?,", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, None: 1.0}


def parse_h2load(output: str) -> Answered:
    """Return the figures in what h2load printed. Raises ``Unfit`` where they are not there."""
    found = {name: re.search(pattern, output, re.MULTILINE) for name, pattern in _NUMBERS.items()}
    finished = _FINISHED.search(output)
    if finished is None or not all(found.values()):
        raise Unfit(f"h2load did not say how it went: {output[-500:]}")
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    return Answered(seconds=float(finished[1]) * _UNITS[finished[2]], **numbers)


def parse_h2load_log(log: str) -> list[float]:
    """Return the latencies, in milliseconds, of h2load's log: a line with start, status and microseconds for each."""
    return [int(line.split("\t")[2]) / 1e3 for line in log.splitlines()]


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of the values lie."""
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def h2load(
    url: str,
    pids: Sequence[int],
    calls: int,
    connections: int = 1,
    streams: int = 1,
    headers: Sequence[str] = (),
    body: Path | None = None,
    http1: bool = False,
    answer: int | None = None,
    may_fail: bool = False,
) -> Load:
    """Send one request again and again, ``connections`` × ``streams`` at a time, and measure.

    The headers are on h2load's command line: only ever throwaway keys. ``answer`` is how many bytes of data a call must
    bring, more or less: h2load does not read gRPC's status, and an error brings none. Raises ``Unfit``, also where a
    call fails, unless it may; what failed does not count as a call.
    """
    calls = max(calls, connections * streams)
    with tempfile.NamedTemporaryFile("r", prefix="h2load-") as log:
        command = ["taskset", "--cpu-list", ",".join(map(str, GENERATOR_CORE)), "h2load"]
        command += ["-n", str(calls), "-c", str(connections), "-m", str(streams), "-t", "1", "--log-file", log.name]
        command += ["--h1"] if http1 else []
        for header in headers:
            command += ["-H", header]
        command += ["-d", str(body)] if body else []
        before = cpu_seconds(pids)
        ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=600, check=False)
        cpu = cpu_seconds(pids) - before
        took = sorted(parse_h2load_log(log.read()))
    if ran.returncode:
        raise Unfit(f"h2load: {ran.stderr[-500:]}")
    answered = parse_h2load(ran.stdout)
    failed = calls - answered.succeeded
    if failed and not may_fail:
        raise Unfit(f"{failed} of {calls} calls failed")
    if answer is not None and abs(answered.data / calls - answer) > max(4, answer * 0.1):
        raise Unfit(f"a call brought {answered.data / calls:.0f} bytes, and should bring some {answer}")
    outcomes = {"succeeded": answered.succeeded, "failed": failed}
    return Load(answered.succeeded, answered.seconds, cpu, percentile(took, 0.5), percentile(took, 0.99), outcomes)


def start_loadgen(
    program: Path,
    target: str,
    method: str,
    bodies: Path,
    key: str,
    *options: str,
) -> "subprocess.Popen[str]":
    """Start ``loadgen``: another request in each call. ``options`` are its flags."""
    command = ["taskset", "--cpu-list", ",".join(map(str, GENERATOR_CORE)), str(program)]
    command += [f"-target={target}", f"-method={method}", f"-bodies={bodies}", "-authorization=-"]
    running = subprocess.Popen(
        [*command, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdin is not None
    running.stdin.write(f"Bearer {key}\n")
    running.stdin.flush()
    return running


def finish_loadgen(running: "subprocess.Popen[str]", cpu: float = 0.0) -> Load:
    """Wait for it to end, and return what it measured. ``cpu`` is what the caller measured. Raises ``Unfit``."""
    output, errors = running.communicate(timeout=900)
    if running.returncode:
        raise Unfit(f"loadgen: {errors[-500:]}")
    report = json.loads(output)
    return Load(report["calls"], report["seconds"], cpu, report["p50"], report["p99"], report["outcomes"])


class Ratio(NamedTuple):
    """How a case compares with its yardstick: the median of several rounds, the least and the most of them."""

    median: float
    least: float
    most: float


def ratio(rounds: Sequence[float]) -> Ratio:
    """Return how each round's ratio sums up."""
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))
