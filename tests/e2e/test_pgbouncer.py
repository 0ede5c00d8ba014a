"""A server behind PgBouncer in transaction mode: no two statements need the same database connection."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.service import Client, Service, eventually
from tests.faults.test_database_away import Bouncer, Server, pgbouncer

CALLERS, ROUNDS = 16, 12
"""Concurrent callers, and rounds of calls by each."""


@pytest.fixture(scope="module")
def bounced(databases: Path) -> Iterator[str]:
    """Return the URL of a PgBouncer with two connections in total, in front of its own server."""
    program = pgbouncer()
    databases.chmod(0o711)
    for name in ("bounced", "bouncing"):
        (databases / name).mkdir(mode=0o755)
    server = Server(databases / "bounced")
    bouncer = Bouncer(program, server.url, databases / "bouncing")
    yield bouncer.url
    bouncer.close()
    server.close()


@pytest.fixture(scope="module")
def service(bounced: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a server with two workers behind PgBouncer, made by `init` through it, without any setting for it."""
    folder = tmp_path_factory.mktemp("bounced") / "data"
    service = Service(folder, bounced).init().start("--workers", "2", "--log-format", "json")
    yield service
    service.close()


def live(client: Client, number: int) -> int:
    """Run keys through their lives, check each response, and return the number of calls."""
    calls = 0
    for round_ in range(ROUNDS):
        name = f"{number}/{round_}"
        made = client.create(name=name)
        assert made.api_key.name == name
        verified = client.verify(made.key)
        assert (verified.valid, verified.key_id, verified.name) == (True, made.api_key.id, name)
        assert client.get(made.api_key.id).name == name
        client.revoke(made.api_key.id)
        assert client.verdict(made.key) == "REVOKED"
        calls += 5
    return calls


def test_many_callers(service: Service) -> None:
    """Hundreds of concurrent calls get their own responses, and the log holds every change."""
    before = service.read("SELECT revision FROM log_head")[0][0]
    clients = [service.connect() for _ in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as threads:
        calls = sum(threads.map(live, clients, range(CALLERS)))
    assert calls == 5 * CALLERS * ROUNDS
    ((after,),) = service.read("SELECT revision FROM log_head")
    assert after == before + 2 * CALLERS * ROUNDS
    service.audit()
    assert '"level": "warning"' not in service.stderr
    assert '"level": "error"' not in service.stderr


def test_watch(service: Service) -> None:
    """Streams of both workers receive every change in order, although LISTEN cannot work."""
    watches = [service.connect().watch().opened() for _ in range(6)]
    made: list[str] = []
    over = threading.Thread(target=lambda: made.extend(service.create().api_key.id for _ in range(20)))
    over.start()
    for watch in watches:
        heard = [event.key_id for event in watch.events(20)]
        over.join()
        assert heard == made
        watch.cancel()


def test_two_servers(service: Service) -> None:
    """A server finds another server's changes within the staleness bound, by polling."""
    other = service.beside()
    try:
        made = service.create()
        assert other.verdict(made.key) == "VALID"
        service.revoke(made.api_key.id)
        eventually(lambda: other.verdict(made.key) == "REVOKED", 3)
    finally:
        other.close()


def test_it_says_so(service: Service) -> None:
    """Each process logs once, at level info, that it is behind a pooler and finds changes by polling."""
    said = [line for line in service.stderr.splitlines() if "the database is behind a pooler" in line]
    assert len(said) == 2
    assert all('"level": "info"' in line for line in said)


def test_commands(service: Service) -> None:
    """The commands work through PgBouncer."""
    for command in (("doctor",), ("audit", "verify"), ("migrate",)):
        done = service.command(*command)
        assert done.returncode == 0, done.stderr + done.stdout
