"""Several workers on one port behave as one server, whatever happens to any of them."""

import json
import os
import re
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.service import PATIENCE, Client, Service, alive, eventually, together
from tests.e2e.test_server import ENDING, refusal
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server import metrics
from tumbler_server.processes import TOGETHER

MANY = 24
"""Connections. The system spreads them: the odds that all reach one of two workers are one to eight million."""


def logged(service: Service, event: str) -> list[dict[str, Any]]:
    """Return the log lines of an event, from all processes."""
    lines = (json.loads(line) for line in service.stderr.splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


def pids(service: Service) -> dict[int, int]:
    """Return each worker's process ID, by the worker's number, as the log reports them."""
    return {line["worker"]: line["pid"] for line in logged(service, "a worker is ready")}


def schedulers(service: Service) -> list[int]:
    """Return the process IDs of a server's schedulers, at any depth below the server's process."""
    assert service.process is not None
    found = []
    for process in psutil.Process(service.process.pid).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:  # it has ended since
            continue
        if "tumbler_server.scheduler" in line:
            found.append(process.pid)
    return found


def the_scheduler(service: Service) -> int:
    """Wait until a server has a scheduler, and return its process ID."""
    (pid,) = eventually(lambda: schedulers(service))
    return int(pid)


def refuses_connections(target: str) -> bool:
    """Return whether connections to the address are refused."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """Stop a process with SIGSTOP until the block ends."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def counted(service: Service) -> dict[str, float]:
    """Return the server's metrics: a number for each name with its labels."""
    text = scraped(service)
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def scraped(service: Service) -> str:
    """Return the text of the server's metrics."""
    (line,) = logged(service, "metrics are served")
    with urllib.request.urlopen(f"http://{line['address']}/metrics", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def crews(
    new_database: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Service]]:
    """Return a function that gives a server with two workers on a dialect. The tests of this file share it."""
    running: dict[str, Service] = {}

    def serve(dialect: str) -> Service:
        if dialect not in running:
            service = Service(tmp_path_factory.mktemp(dialect) / "data", new_database(dialect), ("--workers", "2"))
            running[dialect] = service.init().start()
        return running[dialect]

    yield serve
    for service in running.values():
        service.close()


@pytest.fixture
def crew(dialect: str, crews: Callable[[str], Service]) -> Service:
    """Return a running server with two workers on each database. Tests leave it running."""
    return crews(dialect)


@pytest.fixture
def pair(embedded: Service) -> Service:
    """Return a private installation that two workers will serve."""
    embedded.options = ("--workers", "2")
    return embedded


def everywhere(service: Service, key: str | None = None) -> Sequence[Client]:
    """Open so many connections that each worker has some, and make a call on each."""
    clients = [service.connect(key) for _ in range(MANY)]
    assert {client.verdict(service.key) for client in clients} == {"VALID"}
    return clients


def test_one_ready_line(crew: Service) -> None:
    """A server with several workers prints one ready line, as a server with one worker does."""
    assert re.fullmatch(r"tumbler-server is ready on 127\.0\.0\.1:\d+\n", crew.stdout)
    assert len(set(pids(crew).values())) == 2


def test_every_worker_serves(crew: Service) -> None:
    """While either worker is stopped, the other answers its callers."""
    clients = everywhere(crew)
    for pid in pids(crew).values():
        with halted(pid):
            calls = [client.begin("Verify", pb.VerifyRequest(key=crew.key)) for client in clients]
            eventually(lambda calls=calls: any(call.done() for call in calls))
        assert all(call.result(PATIENCE).valid for call in calls)


def test_a_change_made_through_one_worker_holds_in_all(crew: Service, project: str) -> None:
    """A key created, deactivated, activated or revoked on one connection has its new state on all others at once."""
    clients = everywhere(crew)

    def verdicts(text: str) -> set[Any]:
        return set(together(MANY, lambda number: clients[number].verdict(text)))

    for client in clients[:6]:
        made = client.create(project_id=project)
        assert verdicts(made.key) == {"VALID"}
        client.set_active(made.api_key.id, False)
        assert verdicts(made.key) == {"INACTIVE"}
        clients[7].set_active(made.api_key.id, True)
        assert verdicts(made.key) == {"VALID"}
        clients[8].revoke(made.api_key.id)
        assert verdicts(made.key) == {"REVOKED"}
    crew.audit()


def test_a_dead_worker_is_replaced(installed: Service) -> None:
    """A killed worker is logged and replaced, and every acknowledged change survives."""
    installed.options = ("--workers", "2")
    installed.start()
    made = [client.create() for client in everywhere(installed)]
    before = pids(installed)
    os.kill(before[1], signal.SIGKILL)
    eventually(lambda: pids(installed)[1] != before[1])
    (ended,) = logged(installed, "a worker ended")
    assert (ended["level"], ended["worker"], ended["end"], ended["restart_in"]) == (
        "warning",
        1,
        "signal 9 (Killed)",
        0,
    )
    # Callers of the dead worker may get one error.
    eventually(lambda: refusal(installed) is None)
    clients = everywhere(installed)
    assert {clients[number].verdict(each.key) for number, each in enumerate(made)} == {"VALID"}
    with halted(pids(installed)[2]):
        calls = [client.begin("Verify", pb.VerifyRequest(key=installed.key)) for client in clients]
        eventually(lambda: any(call.done() for call in calls))
    assert installed.stdout.count("\n") == 1
    assert installed.stop() == 0
    installed.audit()


def test_a_worker_can_be_replaced_in_order(pair: Service) -> None:
    """A worker that gets SIGTERM finishes its calls in flight and is replaced."""
    pair.start()
    clients = everywhere(pair)
    before = pids(pair)
    with pair.writers_waiting():
        calls = [client.begin("Create", pb.CreateRequest(project_id="acme", name="waits")) for client in clients[:8]]
        # On one connection, calls start in order.
        assert {client.verdict(pair.key) for client in clients[:8]} == {"VALID"}
        for pid in before.values():
            os.kill(pid, signal.SIGTERM)
    assert all(call.result(PATIENCE).key for call in calls)
    eventually(lambda: not set(pids(pair).values()) & set(before.values()))
    assert {line["end"] for line in logged(pair, "a worker ended")} == {"exit code 0"}
    assert pair.stop() == 0


def test_a_worker_that_cannot_start_is_tried_again(pair: Service) -> None:
    """If a worker cannot restart, the others serve, the log gives the reason, and each retry waits longer."""
    pair.start("--pepper-file", str(pair.pepper_file))
    hidden = pair.pepper_file.rename(pair.pepper_file.with_name("hidden"))
    os.kill(pids(pair)[2], signal.SIGKILL)
    killed, failed = eventually(lambda: logged(pair, "a worker ended")[1:] and logged(pair, "a worker ended")[:2])
    assert (killed["restart_in"], failed["restart_in"]) == (0, 1)
    assert "no pepper file" in failed["reason"]
    eventually(lambda: refusal(pair) is None)
    hidden.rename(pair.pepper_file)
    eventually(lambda: len(logged(pair, "a worker is ready")) == 3)
    assert pair.stop() == 0


def test_calls_under_way_are_finished_before_the_server_ends(pair: Service) -> None:
    """On shutdown, each worker answers its calls in flight, new calls are refused, and no process remains."""
    pair.start()
    clients = everywhere(pair)
    with pair.writers_waiting():
        under_way = [client.begin("Create", pb.CreateRequest(project_id="acme", name="last")) for client in clients[:8]]
        # On one connection, calls start in order: these answers show that the Creates have started.
        assert {client.verdict(pair.key) for client in clients[:8]} == {"VALID"}
        pair.signal(signal.SIGTERM)
        eventually(lambda: refusal(pair) in ENDING)
        assert not any(call.done() for call in under_way)
    made = [call.result(PATIENCE) for call in under_way]
    assert pair.wait() == 0
    assert not any(alive(pid) for pid in pids(pair).values())
    assert not logged(pair, "a worker ended")
    pair.start()
    assert {pair.verdict(each.key) for each in made} == {"VALID"}
    pair.audit()


def test_ctrl_c_reaches_everybody(pair: Service) -> None:
    """Ctrl-C, which a terminal also sends to the workers, stops the server cleanly, without a traceback."""
    pair.start()
    made = pair.create()
    for pid in pids(pair).values():
        os.kill(pid, signal.SIGINT)
    pair.signal(signal.SIGINT)
    assert pair.wait() == 0
    assert "Traceback" not in pair.stderr
    assert not any(alive(pid) for pid in pids(pair).values())
    pair.start()
    assert pair.verdict(made.key) == "VALID"


def test_ctrl_c_while_it_starts(pair: Service) -> None:
    """Ctrl-C during startup stops the workers cleanly, without a traceback."""
    supervisor = pair.launch("--log-level", "debug")
    starting = eventually(lambda: logged(pair, "a worker is starting"))
    begun = [line["pid"] for line in starting]

    def ended_by_it() -> bool:
        for pid in filter(alive, begun):
            os.kill(pid, signal.SIGINT)
        return supervisor.poll() is not None

    pair.signal(signal.SIGINT)
    eventually(ended_by_it)
    assert pair.wait() == 0
    assert {line["end"] for line in logged(pair, "a worker's process ended")} == {"exit code 0"}
    assert "Traceback" not in pair.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_ctrl_c_gives_up(pair: Service, workers: str) -> None:
    """A second Ctrl-C stops the server at once, without waiting for calls in flight."""
    long = f"{2 * PATIENCE:.0f}s"  # a server that waited for the call would be too late here
    pair.start("--workers", workers, "--database-timeout", long, "--shutdown-grace", long)
    with pair.writers_waiting():
        waiting = pair.begin("Create", pb.CreateRequest(project_id="acme", name="too slow"))
        assert pair.verdict(pair.key) == "VALID"
        pair.signal(signal.SIGINT)
        eventually(lambda: "Stopping" in pair.stderr)
        time.sleep(TOGETHER)
        pair.signal(signal.SIGHUP)  # a shell that ends: this is no second request
        began = time.monotonic()
        pair.signal(signal.SIGINT)
        assert pair.wait() == 130
        assert time.monotonic() - began < PATIENCE / 2  # the call itself has PATIENCE
        assert not any(alive(pid) for pid in pids(pair).values())
        assert waiting.exception(PATIENCE) is not None


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_same_signal_twice_is_one(embedded: Service, workers: str) -> None:
    """A repeated SIGTERM, as `timeout` sends it within a millisecond, does not cut off calls in flight."""
    embedded.start("--workers", workers)
    with embedded.writers_waiting():
        waiting = embedded.begin("Create", pb.CreateRequest(project_id="acme", name="last"))
        assert embedded.verdict(embedded.key) == "VALID"
        embedded.signal(signal.SIGTERM)
        time.sleep(0.001)
        embedded.signal(signal.SIGTERM)
        eventually(lambda: "Stopping" in embedded.stderr)
        embedded.signal(signal.SIGTERM)
    assert waiting.result(PATIENCE).key
    assert embedded.wait() == 0


def test_workers_end_with_their_supervisor(pair: Service) -> None:
    """If the supervisor is killed, the workers finish their calls in flight and exit."""
    pair.start()
    clients = everywhere(pair)
    with pair.writers_waiting():
        under_way = [client.begin("Create", pb.CreateRequest(project_id="acme", name="last")) for client in clients[:8]]
        assert {client.verdict(pair.key) for client in clients[:8]} == {"VALID"}
        pair.signal(signal.SIGKILL)
        assert pair.wait() == -signal.SIGKILL
        eventually(lambda: refuses_connections(pair.target))
    assert all(call.result(PATIENCE).key for call in under_way)
    pair.audit()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(("there", "newcomer"), [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")])
def test_a_port_in_use_is_refused(embedded: Service, there: str, newcomer: str, host: str) -> None:
    """A server refuses to start on a port that another server uses, on one address of its host or all, and says why."""
    embedded.start("--workers", there)
    address = f"{host}:{embedded.target.rpartition(':')[2]}"
    refused = embedded.command("serve", "--listen", address, "--workers", newcomer)
    assert refused.returncode == 1
    assert refused.stderr == f"tumbler-server: cannot listen on {address}: is another server running there?\n"
    assert refused.stdout == ""
    assert embedded.verdict(embedded.key) == "VALID"


def test_what_is_wrong_is_said_once(tmp_path: Path) -> None:
    """If there is no installation, `serve` says so in one line for all workers, and no process remains."""
    refused = Service(tmp_path / "data").command("serve", "--listen", "127.0.0.1:0", "--workers", "4")
    assert refused.returncode == 1
    assert "tumbler-server init" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert refused.stdout == ""


@pytest.mark.parametrize("number", ["0", "-1", "65", "many"])
def test_how_many_workers(embedded: Service, number: str) -> None:
    """An invalid number of workers is a usage error."""
    assert embedded.command("serve", "--workers", number).returncode == 2


@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_names_and_ipv6(pair: Service, host: str) -> None:
    """Workers can share a port on a host name or on an IPv6 address."""
    try:
        pair.start(listen=f"{host}:0")
    except AssertionError:
        if "cannot listen" in pair.stderr:
            pytest.skip("this machine has no IPv6")
        raise
    assert pair.target.startswith(f"{host}:")
    everywhere(pair)
    assert pair.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_counts_are_shown(embedded: Service, workers: str) -> None:
    """A scraper reads the sum over all workers, and no metric contains a key ID, a secret or a key's name."""
    embedded.start("--workers", workers, "--metrics-listen", "127.0.0.1:0")
    made = embedded.create(name="in nobody's metrics")
    clients = everywhere(embedded)
    for client in clients:
        assert client.verdict(made.key) == "VALID"
        assert client.verdict(made.key[:-1]) == "MALFORMED"
        assert client.verdict(embedded.key, environment_id="elsewhere") == "ENVIRONMENT_MISMATCH"
    counts = counted(embedded)
    assert counts['tumbler_verdicts_total{code="malformed"}'] == MANY
    assert counts['tumbler_verdicts_total{code="environment_mismatch"}'] == MANY
    assert counts['tumbler_verdicts_total{code="valid"}'] >= 2 * MANY
    text = scraped(embedded)
    for secret in (made.key, embedded.key):
        key_id, rest = secret.split("_")[-2:]
        assert key_id not in text
        assert rest not in text
    assert "nobody" not in text


def test_counts_outlive_a_worker(pair: Service) -> None:
    """A dead worker's counts stay in the sum, and its restart is counted."""
    pair.start("--metrics-listen", "127.0.0.1:0")
    for client in everywhere(pair):
        client.verdict("typing error")
    assert counted(pair)["tumbler_worker_restarts_total"] == 0
    for pid in pids(pair).values():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(logged(pair, "a worker is ready")) == 4)
    counts = counted(pair)
    assert counts["tumbler_worker_restarts_total"] == 2
    assert counts['tumbler_verdicts_total{code="malformed"}'] == MANY
    assert pair.stop() == 0


def folders(service: Service) -> list[Path]:
    """Return the folders in which a server's processes share their metrics."""
    return list(service.data_dir.glob(".metrics-*"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_processes_are_replaced_though_their_folder_was_removed(embedded: Service, workers: str) -> None:
    """If the metrics folder is deleted, dead workers and schedulers are still replaced, and new ones are counted."""
    embedded.start("--workers", workers, "--metrics-listen", "127.0.0.1:0")
    scheduler = the_scheduler(embedded)
    (folder,) = folders(embedded)
    shutil.rmtree(folder)
    os.kill(scheduler, signal.SIGKILL)
    assert eventually(lambda: [pid for pid in schedulers(embedded) if pid != scheduler])
    for pid in pids(embedded).values():
        os.kill(pid, signal.SIGKILL)
    if workers == "2":
        eventually(lambda: len(logged(embedded, "a worker is ready")) == 4)
    for client in everywhere(embedded):
        client.verdict("typing error")
    eventually(lambda: counted(embedded)['tumbler_verdicts_total{code="malformed"}'] == MANY)
    assert logged(embedded, "the metrics folder was removed and made again: counts of running processes are not shown")
    assert embedded.stop() == 0
    assert folders(embedded) == []


def test_the_counts_of_a_killed_server_are_removed(embedded: Service) -> None:
    """A server removes the metrics folder of a killed server, but none that is in use."""
    embedded.start("--metrics-listen", "127.0.0.1:0")
    (left,) = folders(embedded)
    embedded.signal(signal.SIGKILL)
    embedded.wait()
    embedded.start("--metrics-listen", "127.0.0.1:0")
    (used,) = folders(embedded)
    assert used != left
    with metrics.folder(embedded.data_dir) as other:
        assert set(folders(embedded)) == {used, Path(other.path)}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_counts_need_an_address_of_their_own(embedded: Service, workers: str) -> None:
    """If the metrics address is in use, the server does not start, and says so in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused = embedded.command(
            "serve", "--listen", "127.0.0.1:0", "--workers", workers, "--metrics-listen", address
        )
    assert refused.returncode == 1
    assert refused.stderr == f"tumbler-server: cannot listen on {address}: is another server running there?\n"
    assert refused.stdout == ""
