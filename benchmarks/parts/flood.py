"""A flood of invalid keys, and the latency of callers with valid keys during it."""

from benchmarks import seed
from benchmarks.bench import SQLITE, Bench
from benchmarks.load import Load, Unfit, finish_loadgen, start_loadgen, write_bodies
from benchmarks.parts.verify import VERIFY, mistyped, request, wrong
from benchmarks.server import NOOP
from benchmarks.service import Service
from tumbler import keyformat

IN_FLIGHT = 32
VALID_CALLERS = 4
PAUSE = "10ms"

ALONE, NO_OPS, FLOOD = "nothing", "32 in flight of no-ops", "32 in flight of wrong keys"


def run(bench: Bench) -> list[dict[str, object]]:
    """Send forged ids, wrong secrets and typing errors, each once, and measure four callers with valid keys."""
    if bench.loadgen is None:
        return []
    size = 3_000 if bench.quick else 100_000
    house = bench.found(SQLITE)
    keys = list(seed.texts(10_000 if not bench.quick else 1_000))
    seed.add_digested(house.url, house.pepper_file, keys)
    bad = _bad(keys, size)
    with Service(house) as service:
        caller = service.caller("tumbler:keys:verify")
        good = write_bodies(bench.path("good"), [request(text) for text in keys[:100]])
        for text in keys[:100]:
            service.raw(VERIFY, request(text), caller)

        def callers(seconds: float) -> Load:
            return finish_loadgen(
                start_loadgen(
                    bench.loadgen,  # type: ignore[arg-type]  # checked above
                    service.target,
                    VERIFY,
                    good,
                    caller,
                    f"-seconds={seconds}",
                    f"-in-flight={VALID_CALLERS}",
                    f"-pause={PAUSE}",
                )
            )

        def beside(method: str, bodies: list[bytes], *options: str) -> tuple[Load, Load]:
            path = write_bodies(bench.path("flood"), bodies)
            options = (*options, f"-in-flight={IN_FLIGHT}", "-connections=8")
            flood = start_loadgen(bench.loadgen, service.target, method, path, caller, *options)  # type: ignore[arg-type]
            fared = callers(seconds)
            return finish_loadgen(flood), fared

        seconds = 1.0 if bench.quick else 15.0
        bench.say("flood: good callers alone")
        rows = [_row(ALONE, None, callers(seconds))]
        bench.say("flood: good callers beside no-ops")
        rows.append(_row(NO_OPS, *beside(NOOP, [b""], f"-seconds={seconds + 0.5}")))
        bench.say(f"flood: good callers beside {size:,} wrong keys, each another one")
        before = service.counted()["bcrypt_runs"]
        flood, fared = beside(VERIFY, bad)
        rows.append({**_row(FLOOD, flood, fared), "bcrypt_runs": service.counted()["bcrypt_runs"] - before})
    if set(flood.outcomes) - {"OK 2", "OK 3"} or fared.outcomes.keys() != {"OK 1"}:
        raise Unfit(f"a wrong key was not denied, or a good one was: {flood.outcomes}, {fared.outcomes}")
    return rows


def _bad(keys: list[str], size: int) -> list[bytes]:
    """Return different requests: a third each of unknown ids, wrong secrets for known ids, and typing errors."""
    unknown = list(seed.texts(size))
    bad = []
    for number, text in enumerate(unknown):
        known = keys[number // 3 % len(keys)]
        kind = number % 3
        if kind == 0:
            bad.append(text)
        elif kind == 1:
            bad.append(wrong(known) if number // 3 < len(keys) else _foreign(known, text))
        else:
            bad.append(mistyped(text))
    return [request(text) for text in bad]


def _foreign(known: str, other: str) -> str:
    """Return a key with the id of ``known`` and the secret of ``other``."""
    parsed = keyformat.parse(known)
    return keyformat.build(parsed.prefix, parsed.id, keyformat.parse(other).secret)


def _row(beside: str, flood: Load | None, fared: Load) -> dict[str, object]:
    return {"beside": beside, "flood": vars(flood) if flood else None, "fared": vars(fared)}
