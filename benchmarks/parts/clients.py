"""The cost of a verification that a client library answers, and the delay until it denies a revoked key."""

import itertools
import statistics
import time
from collections.abc import Iterator

from benchmarks import seed
from benchmarks.bench import SQLITE, Bench
from benchmarks.load import GENERATOR_CORE, Unfit, percentile, ratio
from benchmarks.service import Service, pinned
from tests.clients.conformance.programs import PROGRAMS, Missing, Program
from tumbler import keyformat
from tumbler.v1 import api_key_service_pb2 as pb

NAMES = {
    "python-sync": "Python, threads",
    "python-aio": "Python, asyncio",
    "go": "Go",
    "typescript": "TypeScript",
    "java": "Java",
}

_PATIENCE = 30.0


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure each verifier through the program that the conformance tests drive."""
    revokes = 5 if bench.quick else 200
    rows: list[dict[str, object]] = []
    house = bench.found(SQLITE)
    keys = list(seed.texts(len(NAMES) * (revokes + 1)))
    seed.add_digested(house.url, house.pepper_file, keys)
    supply = iter(keys)
    with Service(house) as service:
        own = service.caller("tumbler:keys:verify", project_id=seed.PROJECT)
        for name in PROGRAMS:
            bench.say(f"clients: {NAMES[name]}")
            try:
                with pinned(GENERATOR_CORE):
                    program = Program(name, bench.path(f"{name}.stderr"))
            except Missing as missing:
                bench.say(f"clients: {missing}")
                rows.append({"client": NAMES[name], "left_out": str(missing)})
                continue
            with program:
                program.call("open", target=service.target, api_key=own)
                rows.append({"client": NAMES[name], **_calls(bench, program, supply)})
                rows[-1].update(_revocations(service, program, itertools.islice(supply, revokes)))
    return rows


def _calls(bench: Bench, program: Program, supply: Iterator[str]) -> dict[str, object]:
    """Verify one key in a loop of one caller, cached and not. Return medians of several rounds, with their ranges."""
    asked = {"key": next(supply), "required_scopes": [seed.ASKED]}
    cached, uncached = (5_000, 200) if bench.quick else (200_000, 2_000)
    _remembered(program, asked["key"])
    found: dict[str, list[float]] = {"cached_ns": [], "uncached_us": []}
    for _ in range(bench.rounds):
        answer = program.call("bench", calls=cached, **asked)
        if answer["cached"] < cached * 0.99:
            raise Unfit(f"{program.name} answered {answer['cached']} of {cached} calls from memory")
        found["cached_ns"].append(answer["ns_per_call"])
        found["uncached_us"].append(program.call("bench_uncached", calls=uncached, **asked)["ns_per_call"] / 1e3)
    return {name: ratio(rounds) for name, rounds in found.items()}


def _revocations(service: Service, program: Program, keys: Iterator[str]) -> dict[str, object]:
    """Revoke keys that a caller verifies in a loop. Return the delay until the client denies them, in milliseconds."""
    took = sorted(_revocation(service, program, text) for text in keys)
    return {"revoked": len(took), "p50": statistics.median(took), "p99": percentile(took, 0.99), "most": took[-1]}


def _revocation(service: Service, program: Program, text: str) -> float:
    _remembered(program, text)
    program.call("race_start", key=text, callers=1, required_scopes=[seed.ASKED])
    service.call("Revoke", pb.RevokeRequest(key_id=keyformat.parse(text).id))
    returned = time.time()
    deadline = time.monotonic() + _PATIENCE
    while True:
        # Poll seldom, since each poll costs the program time.
        time.sleep(0.02)
        if program.call("verify", key=text).get("code") == "REVOKED":
            break
        if time.monotonic() > deadline:
            raise Unfit(f"{program.name} does not deny a revoked key")
    raced = program.call("race_stop")
    if not raced["valid"] or raced["first_denied_ended_us"] is None or raced.get("errors"):
        raise Unfit(f"{program.name}: {raced}")
    # The stream may deliver the revocation before Revoke returns.
    return max(0.0, raced["first_denied_ended_us"] / 1e3 - returned * 1e3)


def _remembered(program: Program, text: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not program.call("verify", key=text).get("cached"):
        if time.monotonic() > deadline:
            raise Unfit(f"{program.name} does not remember a key")
        time.sleep(0.002)
