"""Pages of List, with a thousand keys and with a million; and by each filter, with 400,000 keys of one project."""

import dataclasses
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks import seed
from benchmarks.bench import BUILD, POSTGRESQL, SQLITE, Bench
from benchmarks.load import frame, h2load, ratio
from benchmarks.service import SERVICE, House, Service, found
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import DAY, HOUR, NEVER, system_clock
from tumbler_server.config import Installation
from tumbler_server.keys.listing import Query, filter_fingerprint
from tumbler_server.keys.record import Key
from tumbler_server.limits import LIST_SKIP
from tumbler_server.secrets.opaque_tokens import open_opaque_tokens
from tumbler_server.store import migrations
from tumbler_server.store.database import open_store

ORDERS = ("create_time desc", "name asc", "expire_time asc", "last_used_time desc")
PROJECT, OPERATOR = "of a project", "of all projects"
ELSEWHERE = 0.2
"""The share of keys that belong to other projects."""

FIRST, MIDDLE = "first", "middle"

SEARCHED = "service 00000000"
"""The name of the first key, and of no other."""


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure every order, for a caller in a project and for an operator, alternating between both sizes."""
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
        asked
        if page == FIRST
        else _middle(services[place], asked, sizes[place], seed.PROJECT if whose == PROJECT else "")
        for place, page in places
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
    """Return the latency of a page and its CPU time on the server, both in milliseconds."""
    began = time.perf_counter()
    service.call("List", asked, key)
    calls = max(3, min(200, int(bench.seconds / 3 / (time.perf_counter() - began))))
    body = bench.folder / "body"
    body.write_bytes(frame(asked.SerializeToString()))
    headers = ["content-type: application/grpc", "te: trailers", f"authorization: Bearer {key}"]
    load = h2load(f"http://{service.target}{SERVICE}/List", service.pids, calls, headers=headers, body=body)
    return load.p50, load.cpu / load.calls * 1e3


def _middle(service: Service, asked: pb.ListRequest, size: int, project_id: str) -> pb.ListRequest:
    """Return the request for a page in the middle, with a page token like the server's."""
    column, _, direction = asked.order_by.partition(" ")
    where = "WHERE project_id = ?" if project_id else ""
    store = open_store(service.house.url)
    ((value, key_id),) = store.read(
        f"SELECT {column}, id FROM api_key {where} ORDER BY {column} {direction}, id {direction} LIMIT 1 OFFSET ?",  # noqa: S608
        (*([project_id] if project_id else []), int(size * (1 - ELSEWHERE) / 2)),
    )
    filtered = filter_fingerprint(Query(order_by=asked.order_by), project_id, column, direction == "desc")
    following = pb.ListRequest(page_token=open_opaque_tokens(store, lambda _: "").page(filtered, value, key_id))
    store.close()
    following.MergeFrom(asked)
    return following


def _callers(*services: Service) -> list[str]:
    return [service.caller("tumbler:keys:read") for service in services]


def _house(bench: Bench, database: str, size: int) -> House:
    """Return an installation with ``size`` keys. A large one on SQLite is kept for the next run."""
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


# By filter

MANY, FEW, NONE = "many", "few", "none"

FILTERS = ("owner_id", "environment_id", "scope", "search", "states")

NAME = "name asc"

CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("nothing", "", MANY, {}),
    *(
        (name, order_by, fit, {name: value, "order_by": order_by})
        for order_by in ("", NAME, "last_used_time desc")
        for name, values in (
            ("owner_id", ("big", "small", "nobody")),
            ("environment_id", ("live", "rare", "nowhere")),
            ("scope", (seed.ASKED, "rare:scope", "no:scope")),
            ("search", ("service", SEARCHED, "nothing is called so")),
        )
        for fit, value in zip((MANY, FEW, NONE), values, strict=True)
        if not order_by or name in ("owner_id", "search")
    ),
    ("states: REVOKED", "", MANY, {"states": [4]}),
    ("states: INACTIVE", "", FEW, {"states": [2]}),
    ("states: SUPERSEDED", "", NONE, {"states": [5]}),
    ("states: ACTIVE", "", MANY, {"states": [1]}),
    ("states: EXPIRED", "", MANY, {"states": [3]}),
    ("states: REVOKED, INACTIVE", "", MANY, {"states": [4, 2]}),
    ("states: REVOKED", NAME, MANY, {"states": [4], "order_by": NAME}),
    ("owner_id, states: SUPERSEDED", "", NONE, {"owner_id": "big", "states": [5]}),
    ("owner_id, environment_id", "", MANY, {"owner_id": "big", "environment_id": "live"}),
    ("show_total_size", "", MANY, {"show_total_size": True}),
    ("show_total_size, search", "", NONE, {"show_total_size": True, "search": "nothing is called so"}),
    (f"skip {LIST_SKIP.most:,}", "", MANY, {"skip": LIST_SKIP.most}),
]


def run_filters(bench: Bench) -> list[dict[str, object]]:
    """Measure the first page by each filter, with and without matching keys, against the first page of all keys."""
    size = 4_000 if bench.quick else 400_000
    rows: list[dict[str, object]] = []
    for database in (SQLITE, POSTGRESQL):
        bench.say(f"List by filters on {database}: {size:,} keys are put into the database")
        house = bench.found(database)
        seed.add_digested(house.url, house.pepper_file, seed.texts(size), vary=_varied)
        with Service(house) as service:
            key = service.caller("tumbler:keys:read")
            took: list[list[float]] = [[] for _ in CASES]
            found = [service.call("List", pb.ListRequest(**fields), key) for *_, fields in CASES]
            for turn in range(bench.rounds):
                bench.say(f"List by filters on {database}: round {turn + 1} of {bench.rounds}")
                for number, (*_, fields) in enumerate(CASES):
                    took[number].append(_page_of(bench, service, key, pb.ListRequest(**fields))[0])
        rows += [
            {
                "database": database,
                "filter": name,
                "order": order_by or "create_time desc",
                "fit": fit,
                "found": len(page.api_keys),
                "more": bool(page.next_page_token),
                "p50": statistics.median(mine),
                "ratio": ratio([each / first for each, first in zip(mine, took[0], strict=True)]),
            }
            for (name, order_by, fit, _), page, mine in zip(CASES, found, took, strict=True)
        ]
    return rows


def _varied(number: int, key: Key) -> Key:
    """Return one of 400,000 keys, such that many, few or none match each filter, spread evenly over their ages."""
    few = number % 80_000 == 7
    now = system_clock()
    return dataclasses.replace(
        key,
        owner_id="small" if few else "big" if number % 10 == 0 else key.owner_id,
        environment_id="rare" if few else "live" if number % 4 else "test",
        scopes=(*key.scopes, "rare:scope") if few else key.scopes,
        active=not few,
        revoke_time=now - HOUR if number % 10 == 1 else NEVER,
        expire_time=now - DAY if number % 10 == 2 else key.expire_time,
    )
