"""Load generators, and the measurement of a server under load.

The measure is calls per second of the server's own CPU time. Unlike calls per second, it hardly depends on other load
on the machine, or on a generator that competes for a core.
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
"""The server has a core to itself. Generators, and PostgreSQL if it is used, have the other."""

GRPC_FRAME = 5
"""Bytes before each gRPC message: a flag and the length."""


class Unfit(Exception):
    """A measurement did not measure what it should."""


@dataclass(frozen=True)
class Load:
    """One short run. ``cpu`` is the server's CPU time. It and ``seconds`` are in seconds, latencies in milliseconds."""

    calls: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    outcomes: dict[str, int] = field(default_factory=dict)

    @property
    def per_cpu_second(self) -> float:
        """Return the calls per second of the server's CPU time."""
        return self.calls / self.cpu

    @property
    def per_second(self) -> float:
        """Return the calls per second of wall time."""
        return self.calls / self.seconds


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time of processes so far, in user and system mode, exact to a microsecond."""
    # Linux derives the id of a process's CPU clock from its pid; see clock_getcpuclockid(3).
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def frame(message: bytes) -> bytes:
    """Return a message with the prefix that gRPC sends."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def write_bodies(path: Path, messages: Sequence[bytes]) -> Path:
    """Write requests for ``loadgen``, each after its length."""
    path.write_bytes(b"".join(len(message).to_bytes(4, "big") + message for message in messages))
    return path


@dataclass(frozen=True)
class Answered:
    """h2load's figures of a run."""

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
    """Return the figures from h2load's output. Raises ``Unfit`` if they are missing."""
    found = {name: re.search(pattern, output, re.MULTILINE) for name, pattern in _NUMBERS.items()}
    finished = _FINISHED.search(output)
    if finished is None or not all(found.values()):
        raise Unfit(f"h2load did not say how it went: {output[-500:]}")
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    return Answered(seconds=float(finished[1]) * _UNITS[finished[2]], **numbers)


def parse_h2load_log(log: str) -> list[float]:
    """Return the latencies in h2load's log, in milliseconds. Each line has the start, the status and microseconds."""
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
    """Send one request repeatedly, ``connections`` × ``streams`` in flight, and measure.

    The headers are visible on h2load's command line, so use only throwaway keys. ``answer`` is the approximate number
    of data bytes that a call must return: h2load does not read gRPC's status, and an error returns no data. Failed
    calls are not counted. Raises ``Unfit``, also if a call fails, unless ``may_fail``.
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
    """Start ``loadgen``, which sends a different request in each call. ``options`` are its flags."""
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
    """Wait for ``loadgen`` to end, and return its figures. ``cpu`` is the caller's measurement. Raises ``Unfit``."""
    output, errors = running.communicate(timeout=900)
    if running.returncode:
        raise Unfit(f"loadgen: {errors[-500:]}")
    report = json.loads(output)
    return Load(report["calls"], report["seconds"], cpu, report["p50"], report["p99"], report["outcomes"])


class Ratio(NamedTuple):
    """The ratio of a case to its yardstick: the median, minimum and maximum of several rounds."""

    median: float
    least: float
    most: float


def ratio(rounds: Sequence[float]) -> Ratio:
    """Return the summary of the ratios of all rounds."""
    return Ratio(statistics.median(rounds), min(rounds), max(rounds))
