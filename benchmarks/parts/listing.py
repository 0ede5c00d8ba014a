"""Pages of List, of a thousand keys and of a million."""

import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks import seed
from benchmarks.bench import BUILD, POSTGRESQL, SQLITE, Bench
from benchmarks.load import frame, h2load, ratio
from benchmarks.service import SERVICE, House, Service, found
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.config import Installation
from tumbler_server.store import migrations

ORDERS = ("create_time desc", "name asc", "expire_time asc", "last_used_time desc")
PROJECT, OPERATOR = "of a project", "of all projects"
ELSEWHERE = 0.2
"""The share of keys that are not the project's."""

FIRST, MIDDLE = "first", "middle"

SEARCHED = "service 00000000"
"""The name of the first key that is made, and of no other."""


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure every order, for a caller in a project and for an operator, at both sizes by turns."""
    small, large = (100, 5_000) if bench.quick else (1_000, 1_000_000)
    rows: list[dict[str, object]] = []
    for database in (SQLITE, POSTGRESQL):
        bench.say(f"List on {database}: {large:,} keys are put into the database, unless they are there")
        with ExitStack() as open_:
            houses = [_house(bench, database, size) for size in (small, large)]
            few, many = (open_.enter_context(Service(house)) for house in houses)
            for whose, keys in ((PROJECT, _callers(few, many)), (OPERATOR, [few.house.operator, many.house.operator])):
                for order in ORDERS:
                    bench.say(f"List on {database}: {whose}, by {order}")
                    asked = pb.ListRequest(order_by=order)
                    rows += _measure(bench, database, whose, order, asked, [few, many], keys, [small, large])
            keys = _callers(few, many)
            for what, asked in (
                ("with show_total_size", pb.ListRequest(show_total_size=True)),
                ("with a search that one key fits", pb.ListRequest(search=SEARCHED)),
            ):
                bench.say(f"List on {database}: {what}")
                rows += _measure(bench, database, PROJECT, what, asked, [few, many], keys, [small, large], (FIRST,))
    return rows


def _measure(
    bench: Bench,
    database: str,
    whose: str,
    order: str,
    asked: pb.ListRequest,
    services: Sequence[Service],
    keys: Sequence[str],
    sizes: Sequence[int],
    pages: Sequence[str] = (FIRST, MIDDLE),
) -> list[dict[str, object]]:
    places = [(0, FIRST), *((1, page) for page in pages)]
    requests = [
        asked if page == FIRST else _middle(services[place], keys[place], asked, sizes[place]) for place, page in places
    ]
    took: list[list[float]] = [[] for _ in places]
    cpu: list[list[float]] = [[] for _ in places]
    for _ in range(bench.rounds):
        for number, (place, _page) in enumerate(places):
            p50, used = _page_of(bench, services[place], keys[place], requests[number])
            took[number].append(p50)
            cpu[number].append(used)
    return [
        {
            "database": database,
            "whose": whose,
            "order": order,
            "keys": sizes[place],
            "page": page,
            "p50": statistics.median(took[number]),
            "cpu": statistics.median(cpu[number]),
            "ratio": ratio([mine / first for mine, first in zip(took[number], took[0], strict=True)]),
        }
        for number, (place, page) in enumerate(places)
    ]


def _page_of(bench: Bench, service: Service, key: str, asked: pb.ListRequest) -> tuple[float, float]:
    """Return how long a page takes, and how much CPU time of the server, in milliseconds."""
    began = time.perf_counter()
    service.call("List", asked, key)
    calls = max(3, min(200, int(bench.seconds / 3 / (time.perf_counter() - began))))
    body = bench.folder / "body"
    body.write_bytes(frame(asked.SerializeToString()))
    headers = ["content-type: application/grpc", "te: trailers", f"authorization: Bearer {key}"]
    load = h2load(f"http://{service.target}{SERVICE}/List", service.pids, calls, headers=headers, body=body)
    return load.p50, load.cpu / load.calls * 1e3


def _middle(service: Service, key: str, asked: pb.ListRequest, size: int) -> pb.ListRequest:
    """Return the request for a page in the middle: ``skip`` goes there once, and the token goes on from there."""
    there = pb.ListRequest(skip=int(size * (1 - ELSEWHERE) / 2))
    there.MergeFrom(asked)
    answer = service.call("List", there, key)
    assert answer.next_page_token, "there is no page in the middle"
    following = pb.ListRequest(page_token=answer.next_page_token)
    following.MergeFrom(asked)
    return following


def _callers(*services: Service) -> list[str]:
    return [service.caller("tumbler:keys:read") for service in services]


def _house(bench: Bench, database: str, size: int) -> House:
    """Return an installation with so many keys. A large SQLite one is kept for the next run."""
    if database != SQLITE or size < 1_000_000:
        house = bench.found(database)
        seed.add_digested(house.url, house.pepper_file, seed.texts(size), elsewhere=ELSEWHERE)
        return house
    kept = BUILD / f"list-{size}-schema-{migrations.NEWEST}"
    whole = kept / "operator"  # written at the very end
    if not whole.exists():
        shutil.rmtree(kept, ignore_errors=True)
        house = found(kept)
        seed.add_digested(house.url, house.pepper_file, seed.texts(size), elsewhere=ELSEWHERE)
        whole.touch(0o600)
        whole.write_text(house.operator)
    return House(Installation(kept), whole.read_text())
