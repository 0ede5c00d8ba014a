"""Keys without a usable digest: one bcrypt run each, at the default cost, and the calls after it."""

from benchmarks import seed
from benchmarks.bench import SQLITE, Bench
from benchmarks.load import Load, Unfit, cpu_seconds, finish_loadgen, start_loadgen, write_bodies
from benchmarks.parts.verify import VERIFY, WARM, must_be, request
from benchmarks.race import Case, Race
from benchmarks.service import Service

WITHOUT_DIGEST, WITHOUT_PEPPER = "a key without a digest, first time", "a server without a pepper, first time"


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure keys without a digest, and a server without a pepper, with 1 and 32 calls in flight."""
    if bench.loadgen is None:
        return []
    house = bench.found(SQLITE)
    count = 12 if bench.quick else 100
    bench.say(f"bcrypt: {4 * count} keys are hashed")
    keys = list(seed.texts(4 * count))
    seed.add_undigested(house.url, keys)
    rows: list[dict[str, object]] = []
    groups = [keys[start : start + count] for start in range(0, len(keys), count)]
    for peppered, name, few, many in (
        (True, WITHOUT_DIGEST, groups[0], groups[1]),
        (False, WITHOUT_PEPPER, groups[2], groups[3]),
    ):
        bench.say(f"bcrypt: {name}")
        with Service(house, peppered=peppered) as service:
            caller = service.caller("tumbler:keys:verify")
            for in_flight, texts in ((1, few), (32, many)):
                load = _once(bench, service, caller, texts, in_flight)
                rows.append({"case": name, "in_flight": in_flight, **vars(load)})
            if not peppered:
                warm = Case(WARM, VERIFY, request(few[0]), check=must_be("VALID"))
                measured = Race(bench, service, caller, 1).run([warm])[-1]
                rows.append({"case": "a server without a pepper, afterwards", "ratio": measured.ratio, "in_flight": 1})
    return rows


def _once(bench: Bench, service: Service, caller: str, texts: list[str], in_flight: int) -> Load:
    assert bench.loadgen is not None
    bodies = write_bodies(bench.path("bodies"), [request(text) for text in texts])
    service.raw(VERIFY, request(texts[0]), caller)  # caches the caller's own key
    before, runs = cpu_seconds(service.pids), service.counted()["bcrypt_runs"]
    load = finish_loadgen(
        start_loadgen(
            bench.loadgen,
            service.target,
            VERIFY,
            bodies,
            caller,
            "-first=1",
            f"-in-flight={in_flight}",
        )
    )
    cpu = cpu_seconds(service.pids) - before
    runs = service.counted()["bcrypt_runs"] - runs
    verified = load.outcomes.get("OK 1", 0)
    if runs != verified or verified + load.outcomes.get("ResourceExhausted", 0) != load.calls:
        raise Unfit(f"{verified} keys were verified by {runs} bcrypt runs: {load.outcomes}")
    return Load(load.calls, load.seconds, cpu, load.p50, load.p99, load.outcomes)
