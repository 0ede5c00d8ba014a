"""Tables of the results, and their place in docs/performance.md."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.bench import Bench
from benchmarks.load import Ratio
from benchmarks.parts import clients, fallback, flood, listing, memory, peers, verify, workers
from benchmarks.race import NO_OP

Row = Mapping[str, Any]

NOTHING = "–"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table. All columns but the first are right-aligned."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def insert(text: str, name: str, block: str) -> str:
    """Return a document with ``block`` between the two marks of this name. Raises ``ValueError`` without them."""
    begin, end = f"<!-- {name}: written by make bench -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"there is no one place for {name}: {begin} … {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", text)


def ratio(value: Sequence[float] | None) -> str:
    """Return a ratio as text: the median, minimum and maximum of the rounds."""
    if value is None:
        return NOTHING
    found = Ratio(*value)
    digits = 2 if found.median >= 0.1 else 4
    if found.median >= 10:
        digits = 1
    return f"{found.median:.{digits}f} ({found.least:.{digits}f}–{found.most:.{digits}f})"


def number(value: float | None) -> str:
    """Return a figure with three significant digits."""
    if value is None:
        return NOTHING
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def verify_tables(rows: Sequence[Row]) -> str:
    """Return a table for each database and number of calls in flight."""
    blocks = []
    for database, in_flight in dict.fromkeys((row["database"], row["in_flight"]) for row in rows):
        mine = [row for row in rows if (row["database"], row["in_flight"]) == (database, in_flight)]
        blocks.append(f"{database}, {in_flight} in flight:\n\n{_race([], mine)}")
    return "\n\n".join(blocks)


def workers_table(rows: Sequence[Row]) -> str:
    """Return a table of one and two workers."""
    return _race(["database", "workers"], rows)


def _race(more: Sequence[str], rows: Sequence[Row]) -> str:
    header = ["call", *more, "by", "ratio to the no-op", "keys per CPU-second", "keys per second", "p50 ms", "p99 ms"]
    return table(
        header,
        [
            [
                row["case"],
                *(str(row[name]) for name in more),
                row["generator"],
                "1" if row["case"] == NO_OP else ratio(row["ratio"]),
                number(row["keys_per_cpu_second"]),
                number(row["keys_per_second"]),
                number(row["p50"]),
                number(row["p99"]),
            ]
            for row in rows
        ],
    )


def fallback_table(rows: Sequence[Row]) -> str:
    """Return a table of keys that bcrypt verified."""
    header = [
        "",
        "in flight",
        "keys",
        "verified",
        "refused, to retry",
        "CPU ms per key",
        "p50 ms",
        "p99 ms",
        "ratio to the no-op",
    ]
    lines = []
    for row in rows:
        if "calls" not in row:
            lines.append([row["case"], str(row["in_flight"]), *[NOTHING] * 6, ratio(row["ratio"])])
            continue
        verified = row["outcomes"].get("OK 1", 0)
        lines.append(
            [
                row["case"],
                str(row["in_flight"]),
                str(row["calls"]),
                str(verified),
                str(row["outcomes"].get("ResourceExhausted", 0)),
                number(row["cpu"] / verified * 1e3),
                number(row["p50"]),
                number(row["p99"]),
                NOTHING,
            ]
        )
    return table(header, lines)


def flood_table(rows: Sequence[Row]) -> str:
    """Return a table of the honest callers' latency during a flood."""
    header = ["beside", "calls of the flood", "per second", "bcrypt runs", "honest callers: calls", "p50 ms", "p99 ms"]
    lines = []
    for row in rows:
        flooded, fared = row["flood"], row["fared"]
        lines.append(
            [
                row["beside"],
                f"{flooded['calls']:,}" if flooded else NOTHING,
                number(flooded["calls"] / flooded["seconds"]) if flooded else NOTHING,
                str(row["bcrypt_runs"]) if "bcrypt_runs" in row else NOTHING,
                f"{fared['calls']:,}",
                number(fared["p50"]),
                number(fared["p99"]),
            ]
        )
    return table(header, lines)


def memory_table(rows: Sequence[Row]) -> str:
    """Return a table of the memory of cached keys."""
    header = [
        "keys in the cache",
        "resident MB",
        "bytes per key",
        "since the row above: keys per second",
        "p50 ms",
        "p99 ms",
    ]
    empty = rows[0]["resident"]
    lines = []
    for row in rows:
        load = row["load"]
        lines.append(
            [
                f"{row['keys']:,}",
                f"{row['resident'] / 1e6:.1f}",
                f"{(row['resident'] - empty) / row['keys']:,.0f}" if row["keys"] else NOTHING,
                number(load["calls"] / load["seconds"]) if load else NOTHING,
                number(load["p50"]) if load else NOTHING,
                number(load["p99"]) if load else NOTHING,
            ]
        )
    return table(header, lines)


def listing_table(rows: Sequence[Row]) -> str:
    """Return a table of pages, with one line per order."""
    small, large = min(row["keys"] for row in rows), max(row["keys"] for row in rows)
    header = [
        "database",
        "keys",
        "order",
        f"first of {small:,}: ms",
        f"first of {large:,}: ms",
        "ratio",
        f"middle of {large:,}: ms",
        "ratio",
    ]
    lines = []
    for named in dict.fromkeys((row["database"], row["whose"], row["order"]) for row in rows):
        mine = {
            (row["keys"], row["page"]): row for row in rows if (row["database"], row["whose"], row["order"]) == named
        }
        first, last = mine[large, listing.FIRST], mine.get((large, listing.MIDDLE))
        lines.append(
            [
                *named,
                number(mine[small, listing.FIRST]["p50"]),
                number(first["p50"]),
                ratio(first["ratio"]),
                number(last["p50"]) if last else NOTHING,
                ratio(last["ratio"]) if last else NOTHING,
            ]
        )
    return table(header, lines)


def filters_table(rows: Sequence[Row]) -> str:
    """Return a table of first pages by filter, with one line per filter, order and number of matching keys."""
    databases = list(dict.fromkeys(row["database"] for row in rows))
    header = ["by", "order", "fit", "keys on the page"]
    header += [column for database in databases for column in (f"{database}: ms", "ratio")]
    lines = []
    for named in dict.fromkeys((row["filter"], row["order"], row["fit"]) for row in rows):
        mine = [row for row in rows if (row["filter"], row["order"], row["fit"]) == named]
        on_page = f"{mine[0]['found']}{', and a token' if mine[0]['more'] else ''}"
        lines.append([*named, on_page, *(text for row in mine for text in (number(row["p50"]), ratio(row["ratio"])))])
    return table(header, lines)


def clients_table(rows: Sequence[Row]) -> str:
    """Return a table of client libraries, with one line each."""
    header = [
        "",
        "cached: ns per call",
        "uncached: µs per call",
        "revoked keys",
        "denied after: p50 ms",
        "p99 ms",
        "max ms",
    ]
    return table(
        header,
        [
            [f"{row['client']}: left out, {row['left_out']}", *[NOTHING] * 6]
            if "left_out" in row
            else [
                row["client"],
                number(row["cached_ns"][0]),
                number(row["uncached_us"][0]),
                str(row["revoked"]),
                number(row["p50"]),
                number(row["p99"]),
                number(row["most"]),
            ]
            for row in rows
        ],
    )


def peers_table(rows: Sequence[Row]) -> str:
    """Return a table of the peers."""
    header = [
        "",
        "in flight",
        "its own no-op, calls per CPU-second",
        "ratio to its no-op",
        "calls per CPU-second",
        "calls per second",
        "p50 ms",
        "p99 ms",
        "failed",
    ]
    return table(
        header,
        [
            [f"{row['peer']}: left out, {row['left_out']}", *[NOTHING] * 8]
            if "left_out" in row
            else [
                row["peer"],
                str(row["in_flight"]),
                number(row["no_op_per_cpu_second"]),
                ratio(row.get("ratio")),
                number(row.get("per_cpu_second")),
                number(row.get("per_second")),
                number(row.get("p50")),
                number(row.get("p99")),
                f"{row['failed']:.0%}",
            ]
            for row in rows
        ],
    )


PARTS: Mapping[str, tuple[Callable[[Bench], list[dict[str, Any]]], Callable[[Sequence[Row]], str]]] = {
    "verify": (verify.run, verify_tables),
    "workers": (workers.run, workers_table),
    "fallback": (fallback.run, fallback_table),
    "flood": (flood.run, flood_table),
    "memory": (memory.run, memory_table),
    "listing": (listing.run, listing_table),
    "listing-filters": (listing.run_filters, filters_table),
    "clients": (clients.run, clients_table),
    "peers": (peers.run, peers_table),
}
"""The parts in the order in which they run, each with the function that makes its table."""


def goals_table(results: Mapping[str, Sequence[Row]]) -> str:
    """Return the table of goals, with the measured figures and whether they meet the goals."""
    lines = []
    for name, goal, found, held in _goals(results):
        lines.append([name, goal, found, "yes" if held else "**no**"])
    return table(["figure", "goal", "measured", "held"], lines)


def _goals(results: Mapping[str, Sequence[Row]]) -> list[tuple[str, str, str, bool]]:
    goals = []
    sqlite = [row for row in results.get("verify", ()) if row["database"] == "SQLite"]
    for name, case, least in (
        ("warm Verify / no-op, calls per CPU-second", verify.WARM, 0.85),
        ("Verify of a key never seen (SQLite, digest) / no-op, calls per CPU-second", verify.NEVER_SEEN, 0.6),
        ("BatchVerify of 500, keys / no-op calls, per CPU-second", verify.batch_name(500), 20.0),
    ):
        found = {row["in_flight"]: row["ratio"] for row in sqlite if row["case"] == case}
        if found:
            shown = ", ".join(f"{ratio(value)} with {in_flight} in flight" for in_flight, value in found.items())
            goals.append((name, f"≥ {least}", shown, all(Ratio(*value).median >= least for value in found.values())))
    pages = [row for row in results.get("listing", ()) if row["order"] in listing.ORDERS]
    if pages:
        large = max(row["keys"] for row in pages)
        worst = max((row for row in pages if row["keys"] == large), key=lambda row: Ratio(*row["ratio"]).median)
        where = f"{worst['database']}, {worst['whose']}, {worst['order']}, {worst['page']} page"
        name = f"a page of List of {large:,} keys / the first page of {min(row['keys'] for row in pages):,}"
        median = Ratio(*worst["ratio"]).median
        goals.append((name, "≤ 2", f"at most {number(median)} ({where})", median <= 2))
    filtered = [row for row in results.get("listing-filters", ()) if row["filter"].split(":")[0] in listing.FILTERS]
    filtered = [row for row in filtered if row["order"] == "create_time desc"]
    if filtered:
        worst = max(filtered, key=lambda row: Ratio(*row["ratio"]).median)
        where = f"{worst['database']}, {worst['filter']}, {worst['fit']}"
        median = Ratio(*worst["ratio"]).median
        name = "the first page of List by one filter / the first of all, of 400,000 keys of a project"
        goals.append((name, "≤ 3", f"at most {number(median)} ({where})", median <= 3))
    for row in results.get("flood", ()):
        if "bcrypt_runs" in row:
            calls = f"{row['flood']['calls']:,}"
            name = f"bcrypt runs under a flood of {calls} forged or wrong keys"
            goals.append((name, "0", str(row["bcrypt_runs"]), row["bcrypt_runs"] == 0))
    goals += _client_goals([row for row in results.get("clients", ()) if "left_out" not in row])
    return goals


def _client_goals(rows: Sequence[Row]) -> list[tuple[str, str, str, bool]]:
    if not rows:
        return []
    goals = []
    for language, most in (("Python", 5_000), ("Go", 1_000), ("TypeScript", 3_000), ("Java", 1_000)):
        found = {row["client"]: Ratio(*row["cached_ns"]).median for row in rows if row["client"].startswith(language)}
        if found:
            shown = ", ".join(f"{number(nanoseconds)} ns ({name})" for name, nanoseconds in found.items())
            name = f"Verify of a cached key, {language} client"
            goals.append((name, f"≤ {most // 1_000} µs", shown, max(found.values()) <= most))
    worst = max(rows, key=lambda row: row["p99"])
    name = "time until a client denies a cached key that was revoked, p99 after Revoke returned"
    goals.append((name, "≤ 100 ms", f"{number(worst['p99'])} ms ({worst['client']})", worst["p99"] <= 100))
    return goals
