"""Thousands of Watch streams on one server: their effect on the latency of Verify, and the memory that they leave.

    python -m tests.histories.streams
    python -m tests.histories.streams --streams 200 --cancelled 1000 --json

Keys are verified at a steady pace, alternately without streams and with 2,000 streams that get a heartbeat every 5 s.
In the last turn a key is also changed every second, and each stream gets the change. With idle streams the 99th
percentile may double. The medians of all turns are compared, since a machine's speed varies. Then 10,000 streams are
opened and cancelled, 50 at a time. The server's memory must stay what it was after the first tenth of them, and no
stream may be left. The exit code is 1 if any of this fails.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from typing import Any

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from tests.e2e.service import OWN_CONNECTION, PATIENCE, Service, eventually
from tests.histories.checker import quantile
from tests.histories.counts import METRICS, WATCH_STREAMS, counts
from tests.histories.regulars import Regulars, present
from tests.histories.scene import memory
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler.v1.api_key_service_pb2_grpc import ApiKeyServiceStub

A_CONNECTION = 100
"""Streams that share a connection."""
OPENING = 50
"""Streams that are opened at the same time."""
TURNS = 3
HOLDERS = 2
"""Processes that hold streams."""
_REST = 0.01
"""Average seconds between two calls of a verifying caller."""
_GROWTH = 8 * 1024 * 1024
"""The growth of memory in bytes that is allowed over 9,000 opened and cancelled streams, less than 1 KiB for each."""


class Board:
    """The shared state of the processes of a run."""

    def __init__(self, context: SpawnContext) -> None:
        self.told = context.Value("q", 0)
        """The number of responses that the streams have received."""
        self.over = context.Event()


_board: Board


def join(board: Board) -> None:
    """Store a run's board in a new process."""
    global _board  # noqa: PLW0603 - a board can only be passed to a process when it starts
    _board = board


@dataclass
class Report:
    """The results and problems of a run. ``memory`` is in bytes, after each tenth of the cancelled streams."""

    streams: int
    cancelled: int
    alone: list[Regulars] = field(default_factory=list)
    beside: list[Regulars] = field(default_factory=list)
    changing: list[Regulars] = field(default_factory=list)
    opening_seconds: float = 0.0
    streams_memory: int = 0
    memory: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def verified(self) -> dict[str, list[Regulars]]:
        """Return the results of the verifying callers, by the other load."""
        return {
            "alone": self.alone,
            f"beside {self.streams:,} streams": self.beside,
            "and a change a second": self.changing,
        }


def verify(target: str, key: str, texts: Sequence[str], seconds: float) -> Regulars:
    """Verify keys for some seconds, at a pace that does not saturate the server."""
    until = time.monotonic() + seconds
    return present(target, key, texts, _REST, lambda: time.monotonic() >= until)


def hold(target: str, metadata: Any, count: int) -> Counter[str]:
    """Hold streams open until the run is over, and count the statuses of those that ended before."""
    return asyncio.run(_hold(target, metadata, count))


async def _hold(target: str, metadata: Any, count: int) -> Counter[str]:
    ended: Counter[str] = Counter()
    channels = [grpc.aio.insecure_channel(target, OWN_CONNECTION) for _ in range(-(-count // A_CONNECTION))]
    opening = asyncio.Semaphore(OPENING)

    async def watch(number: int) -> None:
        stub = ApiKeyServiceStub(channels[number // A_CONNECTION])
        try:
            async with opening:  # gRPC's core refuses some of more than 1,000 that are opened at once
                call = stub.Watch(pb.WatchRequest(), metadata=metadata)
                await call.read()
                _tell()
            while await call.read() is not grpc.aio.EOF:
                _tell()
            ended["OK"] += 1
        except grpc.aio.AioRpcError as failure:
            ended[failure.code().name] += 1

    watching = [asyncio.create_task(watch(number)) for number in range(count)]
    while not _board.over.is_set():
        await asyncio.sleep(0.1)
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    for channel in channels:
        await channel.close()
    return ended


def cancel(target: str, metadata: Any, count: int) -> Counter[str]:
    """Open streams, ``OPENING`` at a time, and cancel each after its first response. Return counts of failures."""
    return asyncio.run(_cancel(target, metadata, count))


async def _cancel(target: str, metadata: Any, count: int) -> Counter[str]:
    wrong: Counter[str] = Counter()
    numbers = iter(range(count))
    async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as channel:
        stub = ApiKeyServiceStub(channel)

        async def one_after_another() -> None:
            for _ in numbers:
                call = stub.Watch(pb.WatchRequest(), metadata=metadata, timeout=PATIENCE)
                try:
                    await call.read()
                    call.cancel()
                except grpc.aio.AioRpcError as failure:
                    wrong[failure.code().name] += 1

        await asyncio.gather(*(one_after_another() for _ in range(OPENING)))
    return wrong


def _tell() -> None:
    with _board.told.get_lock():
        _board.told.value += 1


def run(service: Service, streams: int, cancelled: int, seconds: float) -> Report:
    """Run the whole test on a server that was started with ``counts.METRICS``."""
    assert service.process is not None
    server = psutil.Process(service.process.pid)
    made = [service.create(name=f"watched {number}") for number in range(20)]
    report = Report(streams, cancelled)
    context = multiprocessing.get_context("spawn")
    board = Board(context)
    with ProcessPoolExecutor(HOLDERS + 1, context, join, (board,)) as callers:

        def verified(turn_seconds: float = seconds) -> Regulars:
            texts = [each.key for each in made]
            return callers.submit(verify, service.target, service.key, texts, turn_seconds).result()

        verified(1)  # warms everything up
        for turn in range(TURNS):
            report.alone.append(verified())
            size = server.memory_info().rss
            with _held(service, callers, board, report):
                report.beside.append(verified())
                if turn == 0:
                    report.streams_memory = server.memory_info().rss - size
                if turn == TURNS - 1:
                    told = board.told.value
                    with _changing(service, [each.api_key.id for each in made]):
                        report.changing.append(verified())
                    # Changes that are close together come in one response.
                    if not _happens(lambda told=told: board.told.value - told >= streams * max(1.0, seconds / 2)):
                        report.problems.append(
                            f"the streams were told {board.told.value - told:,} times of the changes"
                        )
        for _ in range(10):
            if wrong := callers.submit(cancel, service.target, service.metadata, cancelled // 10).result():
                report.problems.append(f"streams could not be opened: {dict(wrong)}")
            _none_is_left(service, report)
            report.memory.append(server.memory_info().rss)
    _judge(report)
    return report


@contextmanager
def _held(service: Service, callers: ProcessPoolExecutor, board: Board, report: Report) -> Iterator[None]:
    """Hold the streams open, and check that all stay open until the end, and none after it."""
    board.over.clear()
    told, began = board.told.value, time.monotonic()
    shares = [report.streams // HOLDERS + (number < report.streams % HOLDERS) for number in range(HOLDERS)]
    holding = [callers.submit(hold, service.target, service.metadata, share) for share in shares]
    try:
        eventually(
            lambda: board.told.value - told >= report.streams or any(held.done() for held in holding), 10 * PATIENCE
        )
        report.opening_seconds = max(report.opening_seconds, time.monotonic() - began)
        yield
        if (found := counts(service)[WATCH_STREAMS]) != report.streams:
            report.problems.append(f"the server counts {found:.0f} streams")
    finally:
        board.over.set()
    if ended := sum((held.result() for held in holding), Counter()):
        report.problems.append(f"streams ended: {dict(ended)}")
    _none_is_left(service, report)


@contextmanager
def _changing(service: Service, key_ids: Sequence[str]) -> Iterator[None]:
    """Change a key every second."""
    over = threading.Event()

    def change() -> None:
        for number in itertools.count():
            request = pb.UpdateRequest(api_key={"id": key_ids[number % len(key_ids)], "name": f"change {number}"})
            service.call("Update", request)
            if over.wait(1):
                return

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            yield
        finally:
            over.set()
        changing.result()


def _none_is_left(service: Service, report: Report) -> None:
    if not _happens(lambda: counts(service)[WATCH_STREAMS] == 0):
        report.problems.append(f"{counts(service)[WATCH_STREAMS]:.0f} streams were left after all were cancelled")


def _happens(what: Callable[[], bool]) -> bool:
    """Return whether a condition becomes true within 10 seconds."""
    try:
        return eventually(what, 10)
    except AssertionError:
        return False


def _judge(report: Report) -> None:
    alone, beside = (statistics.median(met.p99 for met in turns) for turns in (report.alone, report.beside))
    if beside > 2 * alone:
        report.problems.append(f"Verify's p99 went from {alone / 1e6:.1f} ms to {beside / 1e6:.1f} ms")
    for name, turns in report.verified.items():
        if wrong := sum((met.wrong for met in turns), Counter()):
            report.problems.append(f"{name}: valid keys were answered {dict(wrong)}")
    growth = report.memory[-1] - report.memory[0]
    if growth > _GROWTH:
        report.problems.append(f"memory grew by {growth / 2**20:.1f} MiB over streams that were cancelled")


def plain(report: Report) -> dict[str, Any]:
    """Return a report as plain data."""
    return {
        "streams": report.streams,
        "opening_seconds": round(report.opening_seconds, 2),
        "kib_a_stream": round(report.streams_memory / max(report.streams, 1) / 1024, 1),
        "verify_ms": {
            name: {
                "calls": sum(len(met.took) for met in turns),
                "p50": _milliseconds([quantile(met.took, 0.5) for met in turns]),
                "p99": _milliseconds([met.p99 for met in turns]),
                "p99_of_each_turn": [round(met.p99 / 1e6, 2) for met in turns],
            }
            for name, turns in report.verified.items()
        },
        "cancelled": report.cancelled,
        "memory_mib": [round(size / 2**20, 1) for size in report.memory],
        "problems": report.problems,
    }


def _milliseconds(values: Sequence[int]) -> float:
    return round(statistics.median(values) / 1e6, 2)


def table(report: Report) -> Table:
    """Return the table of the latencies of Verify."""
    shown = Table("Verify", "calls", "p50 ms", "p99 ms", "p99 of each turn")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, met in plain(report)["verify_ms"].items():
        each = " ".join(f"{value:,.1f}" for value in met["p99_of_each_turn"])
        shown.add_row(name, f"{met['calls']:,}", f"{met['p50']:,.1f}", f"{met['p99']:,.1f}", each)
    return shown


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.streams", description="Watch and verify.")
    parser.add_argument("--streams", type=int, default=2_000, help="how many at the same time (default 2,000)")
    parser.add_argument("--cancelled", type=int, default=10_000, help="how many are cancelled (default 10,000)")
    parser.add_argument("--seconds", type=float, default=15, help="how long a turn lasts (default 15)")
    parser.add_argument("--json", action="store_true", help="print plain data")
    arguments = parser.parse_args()
    with memory() as folder:
        service = Service(folder / "streams", options=METRICS).init()
        try:
            report = run(service.start(), arguments.streams, arguments.cancelled, arguments.seconds)
        finally:
            service.close()
    if arguments.json:
        print(json.dumps(plain(report), indent=2))
    else:
        console = Console()
        console.print(table(report))
        told = plain(report)
        console.print(f"{told['kib_a_stream']} KiB for each stream, opened within {told['opening_seconds']} s")
        sizes = ", ".join(f"{size:.1f}" for size in told["memory_mib"])
        console.print(f"memory after each {report.cancelled // 10:,} cancelled streams, in MiB: {sizes}")
        for problem in report.problems:
            console.print(f"problem: {problem}", style="red", markup=False)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
