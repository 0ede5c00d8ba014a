"""Races of cases against the no-op: short alternating runs, so that a disturbance affects both."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc

from benchmarks.bench import Bench
from benchmarks.load import (
    GRPC_FRAME,
    Load,
    Ratio,
    Unfit,
    cpu_seconds,
    finish_loadgen,
    frame,
    h2load,
    ratio,
    start_loadgen,
    write_bodies,
)
from benchmarks.service import Service
from benchmarks.yardstick import NOOP

NO_OP = "no-op"

CONNECTIONS = {1: 1, 32: 8}
"""Connections by calls in flight: as if from a handful of services, with several calls each."""


@dataclass(frozen=True)
class Case:
    """A call to measure. With a ``supply`` each call sends a different request, otherwise always ``request``.

    ``keys`` is the number of keys that a call verifies, and ``reads`` the number of records that it must read from the
    database. ``check`` raises ``Unfit`` for a wrong answer.
    """

    name: str
    method: str
    request: bytes = b""
    supply: "Supply | None" = None
    keys: int = 1
    reads: int = 0
    check: Callable[[bytes], None] = lambda _: None
    outcome: str = "OK 1"
    """The outcome that each call must have, as ``loadgen`` reports it."""


class Supply:
    """Requests that are used once each, or repeated forever in turn."""

    def __init__(self, requests: Sequence[bytes], again: bool = False) -> None:
        self._requests = requests
        self._again = again
        self._used = 0

    @property
    def left(self) -> int:
        """Return how many are left."""
        return 1 << 40 if self._again else len(self._requests) - self._used

    def take(self, count: int) -> Sequence[bytes]:
        """Return the next ``count`` requests, or all of a repeating supply. Raises ``Unfit`` if there are too few."""
        if self._again:
            return self._requests
        if count > self.left:
            raise Unfit(f"{count} new requests are needed, and {self.left} are left")
        self._used += count
        return self._requests[self._used - count : self._used]


@dataclass(frozen=True)
class Measured:
    """The result of a case: its ratio to the no-op in keys per CPU-second, and the medians of its rounds."""

    case: str
    generator: str
    in_flight: int
    ratio: Ratio
    keys_per_cpu_second: float
    keys_per_second: float
    p50: float
    p99: float


class Race:
    """Races on one service, with one caller's key and a number of calls in flight."""

    def __init__(self, bench: Bench, service: Service, key: str, in_flight: int, connections: int = 0) -> None:
        self._bench = bench
        self._service = service
        self._key = key
        self._in_flight = in_flight
        self._connections = connections or CONNECTIONS[in_flight]

    def run(self, cases: Sequence[Case]) -> list[Measured]:
        """Measure each case next to a no-op from the same generator. The no-ops' own figures come first.

        Cases that the server does not offer, or that need a missing generator, are left out.
        """
        running = [case for case in cases if self._fit(case)]
        calls = {case.name: self._calibrate(case) for case in running}
        ratios: dict[str, list[float]] = {case.name: [] for case in running}
        loads: dict[str, list[Load]] = {case.name: [] for case in running}
        yardsticks: dict[bool, list[Load]] = {False: [], True: []}
        no_op = {supplied: self._calibrate(_no_op(supplied)) for supplied in (False, True) if self._can(supplied)}
        for number in range(self._bench.rounds):
            turned = running[number % len(running) :] + running[: number % len(running)]
            for place, case in enumerate(turned if number % 2 == 0 else turned[::-1]):
                supplied = case.supply is not None
                first = [self.measure(case, calls[case.name])] if place % 2 else []
                yardstick = self.measure(_no_op(supplied), no_op[supplied])
                load = first[0] if first else self.measure(case, calls[case.name])
                ratios[case.name].append(case.keys * load.per_cpu_second / yardstick.per_cpu_second)
                loads[case.name].append(load)
                yardsticks[supplied].append(yardstick)
        itself = [self._sum(_no_op(supplied), [1.0], loads) for supplied, loads in yardsticks.items() if loads]
        return [*itself, *(self._sum(case, ratios[case.name], loads[case.name]) for case in running)]

    def measure(self, case: Case, calls: int) -> Load:
        """Make ``calls`` calls of a case, and check their outcomes."""
        target, pids = self._service.at(case.method)
        if case.supply is None:
            body = self._bench.folder / "body"
            body.write_bytes(frame(case.request))
            return h2load(
                f"http://{target}{case.method}",
                pids,
                calls,
                connections=self._connections,
                streams=self._in_flight // self._connections,
                headers=[
                    "content-type: application/grpc",
                    "te: trailers",
                    f"authorization: Bearer {self._key}",
                ],
                body=body,
                answer=GRPC_FRAME + len(self._answer(case)),
            )
        assert self._bench.loadgen is not None
        bodies = write_bodies(self._bench.folder / "bodies", case.supply.take(calls))
        read = self._service.counted()["record_reads"]
        before = cpu_seconds(pids)
        running = start_loadgen(
            self._bench.loadgen,
            target,
            case.method,
            bodies,
            self._key,
            f"-count={calls}",
            f"-in-flight={self._in_flight}",
            f"-connections={self._connections}",
        )
        load = finish_loadgen(running)
        cpu = cpu_seconds(pids) - before
        if load.outcomes != {case.outcome: calls}:
            raise Unfit(f"{case.name}: {calls} calls should be {case.outcome}, and were {load.outcomes}")
        read = self._service.counted()["record_reads"] - read
        if read < case.reads * calls:
            raise Unfit(f"{case.name}: {case.reads * calls} records should be read, and {read} were")
        return Load(load.calls, load.seconds, cpu, load.p50, load.p99, load.outcomes)

    def _fit(self, case: Case) -> bool:
        if not self._can(case.supply is not None):
            return False
        try:
            case.check(self._answer(case))
        except grpc.RpcError as refused:
            if refused.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._bench.say(f"left out: {case.name}: the server does not offer {case.method}")
            return False
        return True

    def _can(self, supplied: bool) -> bool:
        return self._bench.loadgen is not None or not supplied

    def _answer(self, case: Case) -> bytes:
        request = case.supply.take(1)[0] if case.supply else case.request
        return self._service.raw(case.method, request, self._key)

    def _calibrate(self, case: Case) -> int:
        """Return the number of calls that fill a round. The trial calls also warm up the server."""
        enough = max(16, self._in_flight)
        if case.supply is None:
            return max(enough, int(self.measure(case, enough).per_second * self._bench.seconds))
        a_round = case.supply.left // (self._bench.rounds + 1)
        tried = self.measure(case, min(enough, a_round))
        return min(a_round, max(enough, int(tried.per_second * self._bench.seconds)))

    def _sum(self, case: Case, ratios: Sequence[float], loads: Sequence[Load]) -> Measured:
        return Measured(
            case.name,
            "h2load" if case.supply is None else "loadgen",
            self._in_flight,
            ratio(ratios),
            case.keys * statistics.median(load.per_cpu_second for load in loads),
            case.keys * statistics.median(load.per_second for load in loads),
            statistics.median(load.p50 for load in loads),
            statistics.median(load.p99 for load in loads),
        )


def _no_op(supplied: bool) -> Case:
    return Case(NO_OP, NOOP, supply=Supply([b""], again=True) if supplied else None, outcome="OK 0")
