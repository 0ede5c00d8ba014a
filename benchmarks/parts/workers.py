"""Several worker processes on one port and one database."""

from benchmarks import seed
from benchmarks.bench import POSTGRESQL, SQLITE, Bench
from benchmarks.load import GENERATOR_CORE, SERVER_CORE
from benchmarks.parts.verify import NEVER_SEEN, VERIFY, WARM, must_be, request
from benchmarks.race import Case, Race, Supply
from benchmarks.service import Service

IN_FLIGHT = 32


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure one and two workers, with 32 calls in flight on 32 connections, so that both workers get some."""
    rows: list[dict[str, object]] = []
    for database in (SQLITE, POSTGRESQL):
        house = bench.found(database)
        keys = list(seed.texts(6_000 if bench.quick else 60_000))
        seed.add_digested(house.url, house.pepper_file, keys)
        for workers in (1, 2):
            bench.say(f"{workers} workers on {database}")
            cores = SERVER_CORE if workers == 1 else SERVER_CORE | GENERATOR_CORE
            with Service(house, workers, cores=cores) as service:
                caller = service.caller("tumbler:keys:verify")
                race = Race(bench, service, caller, IN_FLIGHT, connections=IN_FLIGHT)
                cases = [
                    Case(WARM, VERIFY, request(keys[0]), check=must_be("VALID")),
                    Case(
                        NEVER_SEEN,
                        VERIFY,
                        supply=Supply([request(text) for text in keys[1:]]),
                        reads=1,
                        check=must_be("VALID"),
                    ),
                ]
                rows += [{"database": database, "workers": workers, **vars(row)} for row in race.run(cases)]
    return rows
