"""Measure everything, print the tables, and write them into docs/performance.md.

    make bench
    make bench BENCH_ARGS=--quick

A quick run tries everything out in a small way and writes nothing. A part that fails leaves its old figures in place;
each table says when it was measured.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apsw
import psycopg

from benchmarks import tables
from benchmarks.bench import BUILD, ROOT, Bench
from benchmarks.load import SERVER_CORE

PAGE = ROOT / "docs" / "performance.md"
RESULTS = BUILD / "results.json"


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="try everything out, in two minutes; writes nothing")
    parser.add_argument("--only", action="append", choices=tables.PARTS, metavar="NAME", help=", ".join(tables.PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to a file too")
    arguments = parser.parse_args()
    bench = Bench(quick=arguments.quick)
    try:
        only = tuple(arguments.only or tables.PARTS)
        return _run(bench, [name for name in tables.PARTS if name.startswith(only)], arguments.json)
    finally:
        bench.close()


def _run(bench: Bench, names: list[str], to: Path | None) -> int:
    for tool, without in bench.missing.items():
        bench.say(f"{tool} is missing: {without}")
    if bench.missing.keys() & {"h2load", "taskset"} or len(os.sched_getaffinity(0)) < 2:
        bench.say("at least h2load, taskset and two cores are needed")
        return 1
    measured: dict[str, Any] = {}
    failed = []
    for name in names:
        try:
            rows = tables.PARTS[name][0](bench)
        except Exception as failure:
            bench.say(f"{name} failed: {type(failure).__name__}: {failure}")
            failed.append(name)
            continue
        when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        # The same form as when it is read back from the file.
        measured[name] = json.loads(json.dumps({"when": when, "rows": rows}))
        if rows:
            print(f"\n{name}\n\n{tables.PARTS[name][1](measured[name]['rows'])}\n", flush=True)
    results = {"machine": _machine(bench), "parts": measured}
    print(f"{results['machine']}\n\n{_goals(measured)}")
    if to:
        to.write_text(json.dumps(results, indent=2))
    if not bench.quick:
        _keep(results)
    if failed:
        bench.say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _keep(results: dict[str, Any]) -> None:
    """Merge the results into the earlier ones, and write all of them to the page."""
    if RESULTS.exists():
        results["parts"] = {**json.loads(RESULTS.read_text())["parts"], **results["parts"]}
    RESULTS.write_text(json.dumps(results, indent=2))
    page = tables.insert(PAGE.read_text(), "machine", results["machine"])
    page = tables.insert(page, "goals", _goals(results["parts"]))
    for name, (_, shown) in tables.PARTS.items():
        part = results["parts"].get(name)
        if part and part["rows"]:
            page = tables.insert(page, name, f"{shown(part['rows'])}\n\nMeasured {part['when']}.")
    PAGE.write_text(page)


def _goals(parts: Mapping[str, Any]) -> str:
    return tables.goals_table({name: part["rows"] for name, part in parts.items()})


def _machine(bench: Bench) -> str:
    """Describe the machine and the versions of the software."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = [
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {importlib.metadata.version(name)}" for name in ("grpcio", "protobuf", "bcrypt")),
        f"SQLite {apsw.sqlite_lib_version()}",
        f"PostgreSQL {_postgresql(bench)}",
        _first_line("h2load", "--version"),
        _first_line("go", "version").removeprefix("go version "),
        f"Node {_first_line('node', '--version')}",
        _first_line("java", "--version"),
    ]
    return "; ".join(fact for fact in facts if fact) + f". The server has core {min(SERVER_CORE)} to itself."


def _postgresql(bench: Bench) -> str:
    with psycopg.connect(bench.postgresql()) as database:
        return str(database.info.parameter_status("server_version"))


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
