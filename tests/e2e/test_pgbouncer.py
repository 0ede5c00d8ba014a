"""A server behind PgBouncer in transaction mode: no two statements of ours need the same connection to the database."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.service import Client, Service, eventually
from tests.faults.test_database_away import Bouncer, Server, pgbouncer

CALLERS, ROUNDS = 16, 12
"""Callers at once, and how often each creates, verifies and changes."""


@pytest.fixture(scope="module")
def bounced(databases: Path) -> Iterator[str]:
    """Give the URL of a PgBouncer that has two connections for everybody, before a server of its own."""
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
    """Give a server of two workers on it, that was founded through it, too; no setting says that it is there."""
    folder = tmp_path_factory.mktemp("bounced") / "data"
    service = Service(folder, bounced).init().start("--workers", "2", "--log-format", "json")
    yield service
    service.close()


def live(client: Client, number: int) -> int:
    """Lead lives of keys, each step checked by what it answers; return how many calls were answered."""
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
    """Hundreds of calls by callers at the same time are answered, each by what it asked; the log holds all of it."""
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
    """Streams at either worker hear of every change, in order, though LISTEN cannot work."""
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
    """What one server changes another finds within the bound, by polling."""
    other = service.beside()
    try:
        made = service.create()
        assert other.verdict(made.key) == "VALID"
        service.revoke(made.api_key.id)
        eventually(lambda: other.verdict(made.key) == "REVOKED", 3)
    finally:
        other.close()


def test_it_says_so(service: Service) -> None:
    """The log says once in each process that a pooler stands there, and that changes are found by polling."""
    said = [line for line in service.stderr.splitlines() if "the database is behind a pooler" in line]
    assert len(said) == 2
    assert all('"level": "info"' in line for line in said)


def test_commands(service: Service) -> None:
    """The commands work through it as well."""
    for command in (("doctor",), ("audit", "verify"), ("migrate",)):
        done = service.command(*command)
        assert done.returncode == 0, done.stderr + done.stdout
