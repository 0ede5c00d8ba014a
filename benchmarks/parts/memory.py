"""The memory that cached keys take, and the performance of a new server with an empty cache."""

from benchmarks import seed
from benchmarks.bench import SQLITE, Bench
from benchmarks.load import Load, Unfit, finish_loadgen, start_loadgen, write_bodies
from benchmarks.parts.verify import VERIFY, request
from benchmarks.race import Supply
from benchmarks.server import NOOP
from benchmarks.service import Service

IN_FLIGHT = 32


def run(bench: Bench) -> list[dict[str, object]]:
    """Verify more and more different keys on a new server, and measure its memory."""
    if bench.loadgen is None:
        return []
    steps = (500, 2_000) if bench.quick else (10_000, 100_000)
    house = bench.found(SQLITE)
    bench.say(f"memory: {steps[-1]:,} keys are put into the database")
    keys = list(seed.texts(steps[-1]))
    seed.add_digested(house.url, house.pepper_file, keys)
    supply = Supply([request(text) for text in keys])
    with Service(house) as service:
        caller = service.caller("tumbler:keys:verify")
        # The first calls allocate threads and buffers, which must not count for the keys.
        _pass(bench, service, caller, NOOP, Supply([b""], again=True), 5_000)
        rows: list[dict[str, object]] = [{"keys": 0, "resident": service.counted()["resident"], "load": None}]
        for step in steps:
            bench.say(f"memory: {step:,} keys are verified for the first time")
            load = _pass(bench, service, caller, VERIFY, supply, step - (steps[-1] - supply.left))
            if load.outcomes != {"OK 1": load.calls}:
                raise Unfit(f"not all keys are valid: {load.outcomes}")
            rows.append({"keys": step, "resident": service.counted()["resident"], "load": vars(load)})
    return rows


def _pass(bench: Bench, service: Service, caller: str, method: str, supply: Supply, count: int) -> Load:
    assert bench.loadgen is not None
    bodies = write_bodies(bench.path("bodies"), supply.take(count))
    options = (f"-count={count}", f"-in-flight={IN_FLIGHT}", "-connections=8")
    return finish_loadgen(start_loadgen(bench.loadgen, service.target, method, bodies, caller, *options))
