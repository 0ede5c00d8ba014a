"""A server with an empty cache, to which 10,000 keys are presented at once.

    python -m tests.histories.cold_start
    python -m tests.histories.cold_start --keys 1000 --json

With the pepper, on each database: 32 calls in flight present all keys in random order. bcrypt may not run, and each
key's record is read once.

Without the pepper each key costs a bcrypt run, and there must be no stampede. A call that finds no free slot is refused
at once, with a delay for its retry. Each key is checked exactly once, however often it is presented. In the end all
keys are accepted. Keys that are already cached are verified throughout.

The exit code is 1 if any of this fails.
"""

import argparse
import asyncio
import heapq
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from tests.e2e.service import OWN_CONNECTION, PATIENCE, Service
from tests.harness import Refused
from tests.histories import keys
from tests.histories.checker import quantile
from tests.histories.counts import BCRYPT_RUNS, METRICS, RECORD_READS, counts
from tests.histories.regulars import Regulars, present
from tests.histories.scene import Postgresql, memory
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

IN_FLIGHT = 32
KNOWN = 50
"""Keys that are cached before the others come."""
_REST = 0.005
"""Seconds between two calls of a caller of known keys."""

_over: Event


@dataclass
class Crowd:
    """The results of the callers that present cold keys. Spans are in nanoseconds."""

    keys: int
    seconds: float = 0.0
    waited: list[int] = field(default_factory=list)
    """For each key, the time from its first presentation until it was accepted."""
    attempts: list[int] = field(default_factory=list)
    refused: int = 0
    """The number of calls that were refused, to be retried."""
    delays: set[float] = field(default_factory=set)
    """The retry delays of these refusals, in seconds."""
    wrong: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """The results on one server, and its problems."""

    name: str
    crowd: Crowd
    bcrypt_runs: int
    record_reads: int
    before: Regulars | None = None
    during: Regulars | None = None
    problems: list[str] = field(default_factory=list)


def join(over: Event) -> None:
    """Store a run's end event in a new process."""
    global _over  # noqa: PLW0603 - an event can only be passed to a process when it starts
    _over = over


def present_all(target: str, metadata: Any, texts: Sequence[str]) -> Crowd:
    """Present each key until it is accepted, ``IN_FLIGHT`` at a time, in random order. Refused calls are retried."""
    return asyncio.run(_present_all(target, metadata, texts))


def present_known(target: str, key: str, texts: Sequence[str], seconds: float) -> Regulars:
    """Present known keys for some seconds or, if ``seconds`` is 0, until the run is over."""
    until = time.monotonic() + seconds
    return present(target, key, texts, _REST, lambda: time.monotonic() >= until if seconds else _over.is_set())


async def _present_all(target: str, metadata: Any, texts: Sequence[str]) -> Crowd:
    crowd = Crowd(len(texts))
    order = random.Random(0).sample(range(len(texts)), len(texts))  # noqa: S311 - no secret
    due: list[tuple[float, int]] = []  # a heap of the times of retries, with their keys
    first: dict[int, int] = {}
    attempts: Counter[int] = Counter()
    open_keys = set(order)
    began = time.monotonic()

    async def present(stub: ApiKeyServiceStub) -> None:
        while open_keys:
            if due and due[0][0] <= time.monotonic():
                key = heapq.heappop(due)[1]
            elif order:
                key = order.pop()
            else:
                await asyncio.sleep(0.01)
                continue
            attempts[key] += 1
            first.setdefault(key, time.monotonic_ns())
            code = ""
            try:
                answer = await stub.Verify(pb.VerifyRequest(key=texts[key]), metadata=metadata, timeout=PATIENCE)
                code = pb.VerifyCode.Name(answer.code)
            except grpc.aio.AioRpcError as failure:
                if failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    delay = Refused(failure.code(), "", failure.trailing_metadata()).retry_delay
                    crowd.refused += 1
                    crowd.delays.add(delay)
                    heapq.heappush(due, (time.monotonic() + delay, key))
                    continue
                code = failure.code().name
            open_keys.discard(key)
            if code == "VERIFY_CODE_VALID":
                crowd.waited.append(time.monotonic_ns() - first[key])
                crowd.attempts.append(attempts[key])
            else:
                crowd.wrong[code] += 1

    async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as channel:
        stub = ApiKeyServiceStub(channel)
        await asyncio.gather(*(present(stub) for _ in range(IN_FLIGHT)))
    crowd.seconds = time.monotonic() - began
    return crowd


def with_pepper(name: str, service: Service, number: int) -> Report:
    """Test a server that has the pepper."""
    texts = [made.text for made in keys.make(service.installation, number)]
    service.start(*METRICS)
    with _callers(1) as callers:
        crowd = callers.submit(present_all, service.target, service.metadata, texts).result()
    found = counts(service)
    report = Report(name, crowd, int(found[BCRYPT_RUNS]), int(found[RECORD_READS]))
    _demand_all(report)
    if report.bcrypt_runs:
        report.problems.append(f"{report.bcrypt_runs} bcrypt runs, in spite of the pepper")
    if report.record_reads > number + IN_FLIGHT:  # the first calls may each read the caller's own key
        report.problems.append(f"{report.record_reads} records were read for {number} keys")
    if crowd.refused:
        report.problems.append(f"{crowd.refused} calls were refused")
    return report


def without_pepper(name: str, service: Service, number: int, cost: int, seconds: float) -> Report:
    """Test a server that has lost the pepper, while other callers present keys that it has cached."""
    texts = [made.text for made in keys.make(service.installation, number + KNOWN, cost)]
    known, cold = texts[:KNOWN], texts[KNOWN:]
    service.pepper_file.rename(service.pepper_file.with_suffix(".lost"))
    service.start(*METRICS)
    over = multiprocessing.get_context("spawn").Event()
    with _callers(2, over) as callers:
        try:
            callers.submit(present_all, service.target, service.metadata, known).result()
            started = counts(service)
            before = callers.submit(present_known, service.target, service.key, known, seconds).result()
            regulars = callers.submit(present_known, service.target, service.key, known, 0)
            crowd = callers.submit(present_all, service.target, service.metadata, cold).result()
        finally:
            over.set()
        during = regulars.result()
    found = counts(service)
    runs, reads = (int(found[what] - started[what]) for what in (BCRYPT_RUNS, RECORD_READS))
    report = Report(name, crowd, runs, reads, before, during)
    _demand_all(report)
    if runs != number:
        report.problems.append(f"{runs} bcrypt runs for {number} keys")
    if not crowd.refused:
        report.problems.append("nobody was refused: there were too few at a time to show anything")
    if min(crowd.delays, default=0.0) <= 0 and crowd.refused:
        report.problems.append("some were refused and not told when to come back")
    if wrong := before.wrong + during.wrong:
        report.problems.append(f"known keys were answered {dict(wrong)}")
    return report


def _callers(number: int, over: Event | None = None) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, context, join, (over or context.Event(),))


def _demand_all(report: Report) -> None:
    """Record a problem unless every key was accepted."""
    if report.crowd.wrong:
        report.problems.append(f"valid keys were answered {dict(report.crowd.wrong)}")
    if len(report.crowd.waited) != report.crowd.keys:
        report.problems.append(f"{len(report.crowd.waited)} of {report.crowd.keys} keys were let in")


def plain(report: Report) -> dict[str, Any]:
    """Return a report as plain data."""
    crowd = report.crowd
    told: dict[str, Any] = {
        "run": report.name,
        "keys": crowd.keys,
        "seconds": round(crowd.seconds, 2),
        "let_in_ms": _milliseconds(crowd.waited),
        "refused": crowd.refused,
        "retry_after_seconds": sorted(crowd.delays),
        "attempts": {"p50": quantile(crowd.attempts, 0.5), "p99": quantile(crowd.attempts, 0.99)}
        | {"max": max(crowd.attempts, default=0)},
        "bcrypt_runs": report.bcrypt_runs,
        "record_reads": report.record_reads,
        "problems": report.problems,
    }
    for name, regulars in (("known_keys_before", report.before), ("known_keys_during", report.during)):
        if regulars is not None:
            told[name] = {"calls": len(regulars.took), "ms": _milliseconds(regulars.took)}
    return told


def _milliseconds(values: Sequence[int]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(quantile(values, share) / 1e6, 2) for name, share in shares.items()}


def table(reports: Sequence[Report]) -> Table:
    """Return the table of the results."""
    columns = (
        "",
        "keys",
        "seconds",
        "bcrypt runs",
        "records read",
        "refused",
        "attempts\np50/max",
        "let in after\np50/p99/max ms",
    )
    shown = Table(*columns, "known keys alone\np50/p99/max ms", "known keys meanwhile\np50/p99/max ms", "wrong")
    for column in shown.columns[1:]:
        column.justify = "right"
    for report in reports:
        told = plain(report)
        known = [told.get(name, {}).get("ms", {}) for name in ("known_keys_before", "known_keys_during")]
        shown.add_row(
            report.name,
            f"{told['keys']:,}",
            f"{told['seconds']:,.1f}",
            f"{report.bcrypt_runs:,}",
            f"{report.record_reads:,}",
            f"{told['refused']:,}",
            f"{told['attempts']['p50']} / {told['attempts']['max']}",
            *(" / ".join(f"{value:,.1f}" for value in spans.values()) for spans in (told["let_in_ms"], *known)),
            str(len(report.problems)),
        )
    return shown


def run(folder: Path, number: int, cost: int, seconds: float, postgresql: Postgresql | None) -> list[Report]:
    """Test servers of all kinds, each with an installation of its own."""
    reports = []
    urls = {"sqlite": ""} | ({"postgresql": postgresql.new_database("cold")} if postgresql else {})
    for name, url in urls.items():
        service = Service(folder / name, url).init()
        try:
            reports.append(with_pepper(f"{name}, with the pepper", service, number))
        finally:
            service.close()
    service = Service(folder / "without").init()
    try:
        reports.append(without_pepper(f"sqlite, without, bcrypt cost {cost}", service, number, cost, seconds))
    finally:
        service.close()
    return reports


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.cold_start", description="Meet a cold server.")
    parser.add_argument("--keys", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--cost", type=int, default=6, help="bcrypt's, where it must run (default 6: some 7 ms)")
    parser.add_argument("--json", action="store_true", help="print plain data")
    arguments = parser.parse_args()
    with memory() as folder:
        postgresql = Postgresql(folder / "postgresql")
        try:
            reports = run(folder, arguments.keys, arguments.cost, 10.0, postgresql)
        finally:
            postgresql.close()
    if arguments.json:
        print(json.dumps([plain(report) for report in reports], indent=2))
    else:
        console = Console(width=170)
        console.print(table(reports))
        for report in reports:
            for problem in report.problems:
                console.print(f"problem: {report.name}: {problem}", style="red", markup=False)
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
