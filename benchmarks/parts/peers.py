"""The alternatives of a Python or Node user, each against a no-op of its own server; and Tumbler, likewise."""

import contextlib
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import seed
from benchmarks.bench import BUILD, ROOT, SQLITE, Bench
from benchmarks.load import SERVER_CORE, Load, Unfit, h2load, ratio
from benchmarks.parts.verify import VERIFY, WARM, must_be, request
from benchmarks.race import NO_OP, Case, Race
from benchmarks.service import Service, pinned

IN_FLIGHT = (1, 32)
TUMBLER = "Tumbler, over gRPC"

_HERE = ROOT / "benchmarks" / "peers"


@dataclass(frozen=True)
class Peer:
    """Another way to check a key in each request. ``settings`` are environment variables for its server."""

    name: str
    folder: str
    settings: Mapping[str, str] = field(default_factory=dict)


PEERS = (
    Peer("keyshield, cache on", "keyshield", {"CACHE": "1"}),
    Peer("keyshield, cache off", "keyshield"),
    Peer("keyshield, cache on, without its pause", "keyshield", {"CACHE": "1", "DELAY": "0"}),
    Peer("keyshield, cache off, without its pause", "keyshield", {"DELAY": "0"}),
    Peer("Better Auth, keys in the database", "better-auth"),
    Peer("Better Auth, keys in memory", "better-auth", {"STORAGE": "memory"}),
    Peer("bcrypt in the request", "bcrypt"),
)


def run(bench: Bench) -> list[dict[str, object]]:
    """Measure each with 1 and 32 calls in flight."""
    rows = list(_tumbler(bench))
    for peer in PEERS:
        if peer.folder == "better-auth" and "npm" in bench.missing:
            rows.append({"peer": peer.name, "left_out": "there is no npm"})
            continue
        bench.say(f"peers: {peer.name}")
        try:
            command = _installed(bench, peer.folder)
        except subprocess.CalledProcessError as failure:
            bench.say(f"left out: {peer.name} cannot be installed: {(failure.stderr or '')[-500:]}")
            rows.append({"peer": peer.name, "left_out": "it could not be installed"})
            continue
        with _serving(bench, peer, command) as (url, key, pid):
            # With many calls in flight, a peer with pauses takes a minute: too long for a quick run.
            rows += [
                _measured(bench, peer, url, key, pid, in_flight) for in_flight in IN_FLIGHT[: 1 if bench.quick else 2]
            ]
    return rows


def _tumbler(bench: Bench) -> Iterator[dict[str, object]]:
    bench.say(f"peers: {TUMBLER}")
    house = bench.found(SQLITE)
    keys = list(seed.texts(1))
    seed.add_digested(house.url, house.pepper_file, keys)
    with Service(house) as service:
        caller = service.caller("tumbler:keys:verify")
        for in_flight in IN_FLIGHT:
            case = Case(WARM, VERIFY, request(keys[0]), check=must_be("VALID"))
            measured = {row.case: row for row in Race(bench, service, caller, in_flight).run([case])}
            yield {
                "peer": TUMBLER,
                "in_flight": in_flight,
                "no_op_per_cpu_second": measured[NO_OP].keys_per_cpu_second,
                "per_cpu_second": measured[WARM].keys_per_cpu_second,
                "per_second": measured[WARM].keys_per_second,
                "ratio": measured[WARM].ratio,
                "p50": measured[WARM].p50,
                "p99": measured[WARM].p99,
                "failed": 0.0,
            }


def _measured(bench: Bench, peer: Peer, url: str, key: str, pid: int, in_flight: int) -> dict[str, object]:
    def load(path: str, calls: int) -> Load:
        header = f"authorization: Bearer {key}"
        return h2load(f"{url}/{path}", [pid], calls, connections=in_flight, headers=[header], http1=True, may_fail=True)

    calls = {"noop": in_flight, "verify": in_flight}
    for _ in range(2):  # on Node, the code is compiled by the second time
        calls = {path: _calibrated(bench, load(path, count), in_flight) for path, count in calls.items()}
    no_ops: list[Load] = []
    verified: list[Load] = []
    for number in range(bench.rounds):
        turn = [("noop", no_ops), ("verify", verified)]
        for path, loads in turn if number % 2 == 0 else turn[::-1]:
            loads.append(load(path, calls[path]))
    succeeded = [one for one in verified if one.calls]
    row: dict[str, object] = {
        "peer": peer.name,
        "in_flight": in_flight,
        "no_op_per_cpu_second": statistics.median(one.per_cpu_second for one in no_ops),
        "failed": sum(one.outcomes["failed"] for one in verified) / sum(sum(one.outcomes.values()) for one in verified),
    }
    if len(succeeded) == bench.rounds:
        row["per_cpu_second"] = statistics.median(one.per_cpu_second for one in verified)
        row["per_second"] = statistics.median(one.per_second for one in verified)
        row["ratio"] = ratio(
            [one.per_cpu_second / no_op.per_cpu_second for one, no_op in zip(verified, no_ops, strict=True)]
        )
        row["p50"] = statistics.median(one.p50 for one in verified)
        row["p99"] = statistics.median(one.p99 for one in verified)
    return row


def _calibrated(bench: Bench, tried: Load, in_flight: int) -> int:
    rate = tried.per_second if tried.calls else 1.0
    return max(2 if bench.quick else 4, in_flight, int(rate * bench.seconds))


def _installed(bench: Bench, folder: str) -> Sequence[str]:
    """Install a peer, unless it is installed, and return the command that serves it."""
    here, place = _HERE / folder, BUILD / "peers" / folder
    locked = here / ("package-lock.json" if folder == "better-auth" else "requirements.txt")
    wanted = hashlib.sha256(locked.read_bytes()).hexdigest()
    stamp = place / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        bench.say(f"peers: installing {folder}, which takes a while")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if folder == "better-auth":
            for name in ("package.json", "package-lock.json"):
                shutil.copy(here / name, place)
            # Build better-sqlite3 here instead of downloading it.
            _run("npm", "ci", "--prefix", str(place), "--build-from-source", "--no-audit", "--no-fund")
        else:
            _run(sys.executable, "-m", "venv", str(place / "venv"))
            _run(str(place / "venv" / "bin" / "pip"), "install", "--quiet", "--requirement", str(locked))
        stamp.write_text(wanted)
    if folder == "better-auth":
        shutil.copy(here / "server.mjs", place)
        return ["node", str(place / "server.mjs")]
    uvicorn = str(place / "venv" / "bin" / "uvicorn")
    # One process with uvloop and httptools, which uvicorn uses if they are installed.
    return [uvicorn, "app:app", "--app-dir", str(here), "--log-level", "critical", "--no-access-log"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextmanager
def _serving(bench: Bench, peer: Peer, command: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Start a peer's server on the server's core, and yield its URL, a key and its pid."""
    folder = bench.path("peer")
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    by_option = [] if command[0] == "node" else ["--port", str(port)]
    environment = {"PATH": os.environ["PATH"], "PEER_FOLDER": str(folder), "PEER_PORT": str(port), **peer.settings}
    with pinned(SERVER_CORE), (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *by_option], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        key = _ready(url, folder / "key", process)
        _checked(url, key)
        yield url, key, process.pid
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _ready(url: str, key: Path, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if key.exists():
            with contextlib.suppress(OSError):
                _status(f"{url}/noop", "")
                return key.read_text()
        time.sleep(0.05)
    raise Unfit("a peer's server did not start")


def _checked(url: str, key: str) -> None:
    """Raise ``Unfit`` unless the key is accepted and a wrong one is refused."""
    if (
        _status(f"{url}/verify", key) != 200
        or _status(f"{url}/verify", key[:-1] + ("a" if key[-1] != "a" else "b")) != 401
    ):
        raise Unfit("a peer does not tell a right key from a wrong one")


def _status(url: str, key: str) -> int:
    asked = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"})  # noqa: S310 - our own
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(asked, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as refused:
        return refused.code
